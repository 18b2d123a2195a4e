# SPDX-License-Identifier: MIT
"""Check the zoo's manifest and the tables that are made from it.

python zoo/verify.py            report what is wrong; exit code 1 if anything is
python zoo/verify.py --write    also write the tables between the markers of docs/*.md
python zoo/verify.py --evaluate also evaluate the shipped encoders and compare with their figures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from solo.checkpoints.zoo import read_manifest, sha256  # noqa: E402

BEGIN, END = "<!-- zoo:begin -->", "<!-- zoo:end -->"
REQUIRED = {
    "name": str,
    "method": str,
    "dataset": str,
    "backbone": dict,
    "epochs": int,
    "recipe": str,
    "command": str,
    "published": list,
}
OPTIONAL = {"checkpoint": (dict, type(None)), "evaluation": str, "tuned": bool, "note": str}
ENCODER = {"name": str, "checkpoint": dict, "command": str, "seed": int, "linear_acc1": float}
LARGEST = 8_000_000  # bytes of all shipped encoders
DASH = "–"
ORDER = ("online", "offline")  # the protocols that the table of methods shows as "a / b"


# -- checks --------------------------------------------------------------------------------------


def problems(manifest: dict[str, Any], root: Path = ROOT) -> Iterator[str]:
    """What is wrong in the manifest, one sentence each.

    Args:
        manifest: the content of zoo/manifest.json.
        root: the repository, for recipes and checkpoints.
    """
    seen: set[str] = set()
    for model in manifest["models"]:
        name = model.get("name", "a model without name")
        if name in seen:
            yield f"{name}: listed twice"
        seen.add(name)
        found = list(_schema(model))
        yield from (f"{name}: {text}" for text in found or _content(model, manifest, root))
    yield from _recipes_left_out(manifest, root)
    yield from _encoders(manifest, root / "zoo", seen)


def _encoders(manifest: dict[str, Any], folder: Path, seen: set[str]) -> Iterator[str]:
    """Shipped encoders of our own: files as described, each with a card, small together."""
    total = 0
    for entry in manifest.get("encoders", []):
        name = entry.get("name", "an encoder without name")
        if name in seen:
            yield f"{name}: listed twice"
        seen.add(name)
        missing = [key for key in ENCODER if not isinstance(entry.get(key), ENCODER[key])]
        yield from (f"{name}: '{k}' must be there, of type {ENCODER[k].__name__}" for k in missing)
        if missing:
            continue
        yield from (f"{name}: {text}" for text in _checkpoint(entry["checkpoint"], folder))
        path = folder / entry["checkpoint"].get("path", "")
        if not (path.parent / "card.md").is_file():
            yield f"{name}: no card.md beside its checkpoint"
        total += path.stat().st_size if path.is_file() else 0
    if total > LARGEST:
        yield f"shipped encoders take {total:,} bytes, more than {LARGEST:,}"


def _schema(model: dict[str, Any]) -> Iterator[str]:
    for key, kind in REQUIRED.items():
        if not isinstance(model.get(key), kind):
            yield f"'{key}' must be there and be of type {kind.__name__}"
    for key, value in model.items():
        if key not in REQUIRED and not isinstance(value, OPTIONAL.get(key, ())):
            yield f"'{key}' is unknown or of a wrong type"


def _content(model: dict[str, Any], manifest: dict[str, Any], root: Path) -> Iterator[str]:
    for key, table in (("method", "methods"), ("dataset", "datasets")):
        if model[key] not in manifest[table]:
            yield f"{key} '{model[key]}' is not in '{table}'"
    for key in ("recipe", "evaluation"):
        if key in model and not (root / model[key]).is_file():
            yield f"{key} '{model[key]}' does not exist"
    folder, file = model["recipe"].rsplit("/", 1)
    if f"--config-path {folder} --config-name {file}" not in model["command"]:
        yield "the command does not run the recipe"
    for figure in model["published"]:
        yield from _figure(figure, manifest)
    if model.get("checkpoint"):
        yield from _checkpoint(model["checkpoint"], root / "zoo")


def _figure(figure: dict[str, Any], manifest: dict[str, Any]) -> Iterator[str]:
    for key, table in (("protocol", "protocols"), ("source", "sources")):
        if figure.get(key) not in manifest[table]:
            yield f"{key} '{figure.get(key)}' is not in '{table}'"
    top1, top5 = figure.get("top1"), figure.get("top5")
    if not isinstance(top1, float) or not isinstance(top5, float) or not 0 < top1 <= top5 <= 100:
        yield f"top1 {top1} and top5 {top5} must be percentages, top1 at most top5"


def _checkpoint(checkpoint: dict[str, Any], folder: Path) -> Iterator[str]:
    if not {"path", "sha256"} <= set(checkpoint):
        yield "a checkpoint needs 'path' and 'sha256'"
        return
    path = folder / checkpoint["path"]
    if not path.is_file():
        yield f"checkpoint '{checkpoint['path']}' does not exist"
    elif sha256(path) != checkpoint["sha256"]:
        yield f"checkpoint '{checkpoint['path']}' has another sha256: {sha256(path)}"
    elif not (path.parent / "args.json").is_file():
        yield f"checkpoint '{checkpoint['path']}' has no args.json beside it"


def _recipes_left_out(manifest: dict[str, Any], root: Path) -> Iterator[str]:
    """Recipes that lie beside listed ones and are not listed themselves."""
    listed = {model.get("recipe", "") for model in manifest["models"]}
    for folder in sorted({recipe.rpartition("/")[0] for recipe in listed}):
        for file in sorted((root / folder).glob("*.yaml")):
            if f"{folder}/{file.name}" not in listed:
                yield f"{folder}/{file.name} is in no model's 'recipe'"


# -- tables --------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _published(manifest: dict[str, Any], method: str, dataset: str) -> str:
    """Published top-1 of a method with the data set's usual encoder, or a dash."""
    models = [
        model
        for model in manifest["models"]
        if model["name"] == f"{method}-{dataset}" and model["published"]
    ]
    figures = models[0]["published"] if models else []
    cells = [
        f"{figure['top1']:.2f}" + ("" if figure["protocol"] in ORDER else f" {figure['protocol']}")
        for figure in sorted(figures, key=lambda f: (*ORDER, f["protocol"]).index(f["protocol"]))
    ]
    return " / ".join(cells) or DASH


def method_table(manifest: dict[str, Any], root: Path = ROOT) -> str:
    """The table of docs/methods.md: every method with its paper, published figures and recipes."""
    datasets = manifest["datasets"]
    rows = []
    for name, method in manifest["methods"].items():
        recipes = {m["recipe"] for m in manifest["models"] if m["method"] == name}
        rows.append(
            [
                f"[{method['title']}](https://arxiv.org/abs/{method['arxiv']})",
                f"`{name}`",
                *(_published(manifest, name, dataset) for dataset in datasets),
                str(len(recipes)),
            ]
        )
    head = ["method", "`method:`", *datasets.values(), "recipes"]
    sources = ", ".join(f"[{s['text']}]({s['url']})" for s in manifest["sources"].values())
    return (
        f"{table(head, rows)}\n\nPublished top-1 accuracy in %, {' / '.join(ORDER)} unless it says "
        f"otherwise, from: {sources}. These figures are not ours. Encoders, epochs, top-5 and all "
        "variants: [Results](results.md)."
    )


def result_tables(manifest: dict[str, Any], root: Path = ROOT) -> str:
    """The tables of docs/results.md: every published figure, by data set, with its recipe."""
    parts = ["Protocols:", ""]
    parts += [f"- **{name}**: {text}" for name, text in manifest["protocols"].items()]
    for key, title in manifest["datasets"].items():
        rows = [
            row
            for model in manifest["models"]
            if model["dataset"] == key
            for row in _result_rows(model, manifest)
        ]
        head = ["method", "encoder", "epochs", "protocol", "top-1", "top-5", "recipe", "notes"]
        parts += ["", f"## {title}", "", table(head, rows)]
    return "\n".join(parts)


def _result_rows(model: dict[str, Any], manifest: dict[str, Any]) -> Iterator[list[str]]:
    notes = "; ".join(
        [*(["tuned by the source"] if model.get("tuned") else []), model.get("note", "")]
    ).strip("; ")
    for figure in model["published"] or [{"protocol": DASH}]:
        yield [
            manifest["methods"][model["method"]]["title"],
            model["backbone"]["name"],
            str(model["epochs"]),
            figure["protocol"],
            *(f"{figure[k]:.2f}" if k in figure else DASH for k in ("top1", "top5")),
            f"[`{model['name']}`](../{model['recipe']})",
            notes or DASH,
        ]


TABLES = {"docs/methods.md": method_table, "docs/results.md": result_tables}


def tables(manifest: dict[str, Any], write: bool, root: Path = ROOT) -> Iterator[str]:
    """Compare the tables in the documents with the manifest, or write them.

    Returns:
        what is wrong, one sentence each.
    """
    for name, make in TABLES.items():
        path = root / name
        text = path.read_text("utf-8") if path.exists() else ""
        if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
            yield f"{name}: needs the lines {BEGIN} and {END}, once and in this order"
            continue
        before, rest = text.split(BEGIN)
        after = rest.split(END)[1]
        fresh = f"{before}{BEGIN}\n{make(manifest, root)}\n{END}{after}"
        if fresh != text and write:
            path.write_text(fresh, "utf-8")
        elif fresh != text:
            yield f"{name}: its table is out of date, run python zoo/verify.py --write"


def main(arguments: list[str] | None = None) -> int:
    """Report problems on stderr; 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the tables")
    parser.add_argument("--evaluate", action="store_true", help="evaluate shipped encoders again")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10, to evaluate its encoders")
    args = parser.parse_args(arguments)
    manifest = read_manifest()
    found = list(problems(manifest))
    found += [] if found else list(tables(manifest, args.write))
    if args.evaluate and not found:
        from encoders import differences

        found += differences(manifest.get("encoders", []), ROOT / "zoo", args.data)
    for text in found:
        print(f"zoo: {text}", file=sys.stderr)
    if not found:
        print(f"zoo: {len(manifest['models'])} models, manifest and tables are in order")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
