# SPDX-License-Identifier: MIT
"""The encoders that ship: packed from the leaderboard's runs, and evaluated again.

python zoo/encoders.py pack BOARD RUNS   pack what a leaderboard's folder has of the list below
python zoo/encoders.py evaluate          evaluate every shipped encoder and compare with its card

Boards whose images are not part of scikit-learn need `--data FOLDER`, with `train/` and `val/`.
Each lies in a folder of its own: `encoder.safetensors` (packed, float16), `args.json`, `card.md`.
The figures are those of the shipped file, measured by `main_linear.py` and `main_knn.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.experiments.leaderboard import results  # noqa: E402
from scripts.experiments.leaderboard.protocol import Protocol, protocol  # noqa: E402
from scripts.experiments.leaderboard.run import evaluate  # noqa: E402
from solo.checkpoints.zoo import read_manifest, sha256  # noqa: E402
from solo.errors import DataError  # noqa: E402
from solo.files.whole import write_json, write_text  # noqa: E402

#: name in the zoo -> leaderboard and cell
ENCODERS = {
    "digits-lejepa-dense": ("digits", "dense-seed0"),
    "digits-lejepa-synccp-80": ("digits", "synccp-80-seed0"),
    "digits-lejepa-synccp-90": ("digits", "synccp-90-seed0"),
    "digits-lejepa-synccp-95": ("digits", "synccp-95-seed0"),
    "digits-lejepa-synccp-2of4": ("digits", "synccp-2of4-50-seed0"),
    "digits-lejepa-synccp-block8-80": ("digits", "synccp-block8-80-seed0"),
    "digits-lejepa-synccp-filter-80": ("digits", "synccp-filter-80-seed0"),
    "digits-lejepa-vicreg_dual-30": ("digits", "vicreg_dual-30-seed0"),
    "digits-lejepa-cdg": ("digits", "cdg-seed0"),
    "digits-mocov3-synccp-90": ("digits-mocov3", "synccp-90-short-seed0"),
    "cifar10-simclr-synccp-90": ("cifar", "synccp-90-short-seed0"),
}


class Images(NamedTuple):
    """What a card says of a data set.

    Attributes:
        size: pixels along an edge of the images that the encoder is evaluated on.
        held_out: how many images the accuracy is of.
        licence: of the images, in a sentence.
    """

    size: int
    held_out: int
    licence: str


IMAGES = {
    "digits": Images(
        24,
        720,
        "drawn anew from the Optical Recognition of Handwritten Digits data of the UCI repository "
        "(E. Alpaydin and C. Kaynak, 1998; CC BY 4.0), as scikit-learn ships it.",
    ),
    "cifar10": Images(
        32,
        10_000,
        "CIFAR-10 (A. Krizhevsky, 2009), photographs from the web, published without a licence.",
    ),
}
TOLERANCE = 0.1  # percentage points between a card and a new evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Pack, or evaluate; 1 if a figure is not what its card says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="from the runs of a leaderboard")
    packing.add_argument("board", choices=sorted({board for board, _ in ENCODERS.values()}))
    packing.add_argument("runs", type=Path)
    packing.add_argument("--zoo", type=Path, default=ROOT / "zoo")
    evaluation = commands.add_parser("evaluate", help="compare with the cards")
    for command in (packing, evaluation):
        command.add_argument("--data", type=Path, help="folder of the images, where not embedded")
    args = parser.parse_args(argv)
    if args.command == "pack":
        pack(args.board, args.runs, args.zoo, args.data)
        return 0
    found = list(differences(read_manifest()["encoders"], ROOT / "zoo", args.data))
    print("\n".join(found) or "zoo: every encoder is as good as its card says")
    return bool(found)


def pack(board: str, runs: Path, zoo: Path, data: Path | None = None) -> list[str]:
    """Pack the finished cells of the list and enter them into the manifest; returns their names.

    Raises:
        ConfigError: the board needs a folder of images and none is given, or the other way round.
        DataError: `runs` has none of them, or `data` is not a folder of images.
    """
    protocol(board).images(data)  # refused before anything is written
    done = results.read(runs)
    names = [name for name, (of, cell) in ENCODERS.items() if of == board and cell in done]
    if not names:
        raise DataError(f"{runs}: none of its finished cells is in the list of zoo/encoders.py.")
    manifest_file = zoo / "manifest.json"
    manifest = json.loads(manifest_file.read_text("utf-8"))
    entries = {entry["name"]: entry for entry in manifest.get("encoders", [])}
    for name in names:
        cell = ENCODERS[name][1]
        entries[name] = pack_one(name, runs / "runs" / cell, done[cell], zoo, data)
    text = manifest_file.read_text("utf-8")
    manifest_file.write_text(with_encoders(text, [entries[n] for n in sorted(entries)]), "utf-8")
    return names


def with_encoders(text: str, entries: list[dict[str, Any]]) -> str:
    """The manifest's text with its last key, `encoders`, replaced: the rest keeps its layout."""
    head = text.split('  "encoders": [')[0].rstrip().removesuffix("}").rstrip().removesuffix(",")
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    return f'{head},\n  "encoders": [\n{lines}\n  ]\n}}\n'


def pack_one(
    name: str, run: Path, record: dict[str, Any], zoo: Path, data: Path | None = None
) -> dict[str, Any]:
    """Write one encoder's folder and return its entry in the manifest."""
    from solo.checkpoints import load_run
    from solo.checkpoints.exporting import export_encoder
    from sparse_ext.export import save_packed

    checkpoint = max(run.glob("*/*/*.ckpt"), key=lambda path: path.stat().st_mtime)
    folder = zoo / board_of(name).dataset / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "encoder.safetensors"
    backbone, args = load_run(checkpoint)
    if args.get("sparse"):
        save_packed(backbone.state_dict(), file, half=True)
    else:
        export_encoder(backbone.half(), file)
    file.chmod(0o644)
    text = (checkpoint.parent / "args.json").read_text("utf-8")
    write_json(folder / "args.json", without_places(json.loads(text)), indent=2)
    figures = measured(board_of(name), folder, data)
    entry = {
        "name": name,
        "checkpoint": {"path": str(file.relative_to(zoo)), "sha256": sha256(file)},
        "command": command(name, record),
        "seed": record["seed"],
        "sparsity": record["measured_sparsity"],
        **figures,
    }
    write_json(folder / "figures.json", {**entry, "of_the_run": record})
    write_text(folder / "card.md", card(entry, record, file.stat().st_size))
    return entry


def without_places(args: dict[str, Any]) -> dict[str, Any]:
    """A run's arguments without the folders of the machine that it ran on."""
    args["checkpoint"]["dir"] = "trained_models"
    for key in ("train_path", "val_path"):
        if args["data"].get(key) is not None:
            args["data"][key] = f"FOLDER/{key.removesuffix('_path')}"
    return args


def board_of(name: str) -> Protocol:
    """The recipes behind a shipped encoder."""
    return protocol(ENCODERS[name][0])


def command(name: str, record: dict[str, Any]) -> str:
    """What trains it: the cell of today's protocol, and what was typed besides."""
    board, cell = board_of(name), results.named(*ENCODERS[name])
    config = board.pretrain.rpartition("/")
    words = [*board.pretraining(cell, record.get("setting")), *record["overrides"]]
    words = [w for w in dict.fromkeys(words) if not w.startswith("sparse.dense_checkpoint")]
    if board.needs_data:
        words += [f"data.{part}_path=FOLDER/{part}" for part in ("train", "val")]
    return (
        f"python3 main_pretrain.py --config-path {config[0]} --config-name {config[2]} "
        + " ".join(words)
    )


def measured(board: Protocol, folder: Path, data: Path | None = None) -> dict[str, float]:
    """Linear and kNN accuracy of a shipped file.

    Args:
        board: recipes.
        folder: of the encoder.
        data: folder of the images, where the board needs one.
    """
    values, arguments = board.images(data)
    with tempfile.TemporaryDirectory() as scratch:  # evaluations leave files beside what they read
        copy = Path(scratch) / "encoder"
        copy.mkdir()
        for file in ("encoder.safetensors", "args.json"):
            shutil.copyfile(folder / file, copy / file)
        path = copy / "encoder.safetensors"
        found = evaluate(
            board, path, Path(scratch), "online", [*board.evaluation, *values], arguments
        )
    return {key: found[key] for key in ("linear_acc1", "knn_acc1")}


def differences(
    entries: Sequence[dict[str, Any]], zoo: Path, data: Path | None = None
) -> list[str]:
    """Figures that a new evaluation does not confirm, one sentence each.

    Encoders of photographs are left out, with a line that says so, without a folder of them.
    """
    found = []
    for entry in entries:
        board = board_of(entry["name"])
        if board.needs_data and data is None:
            print(f"{entry['name']:32}not evaluated: --data FOLDER ({board.title}) is missing")
            continue
        folder = (zoo / entry["checkpoint"]["path"]).parent
        again = measured(board, folder, data if board.needs_data else None)
        for key, value in again.items():
            print(f"{entry['name']:32}{key:12}{entry[key]:8.2f}{value:8.2f}", flush=True)
            if abs(value - entry[key]) > TOLERANCE:
                found.append(f"{entry['name']}: {key} is {value}, its card says {entry[key]}")
    return found


def card(entry: dict[str, Any], record: dict[str, Any], size: int) -> str:
    """What a user has to know, in Markdown."""
    board = board_of(entry["name"])
    images = IMAGES[board.dataset]
    shape = f"(N, 3, {images.size}, {images.size})"
    two = _branches(record)
    linear, knn = (f"{record[key]:.2f}" for key in ("linear_acc1", "knn_acc1"))
    return f"""# {entry["name"]}

```python
import solo

# for images of shape {shape}, normalised
encoder = solo.load_pretrained("{entry["name"]}")
```

- **Recipe**: `{board.pretrain}`; ResNet-18 of width 16, trained without labels.
- **Command**: `{entry["command"]}`
- **Seed**: {entry["seed"]}. One encoder: see docs/results.md for what other seeds do.
- **Accuracy of this file**: linear {entry["linear_acc1"]:.2f} %, kNN
  {entry["knn_acc1"]:.2f} % (top-1, {images.held_out:,} held-out images; `{board.linear}`,
  and k = 20, cosine). Before its weights were rounded to float16: {linear} % and {knn} %.
- **Sparsity**: {entry["sparsity"]:.4f} of the prunable weights are zero. MACs per image, counted:
  {record["macs_effective"]:,} of {int(record["macs_dense"]):,}.
{two}- **File**: {size:,} bytes, float16; of masked layers only the weights that are not pruned.
- **Trained** {record["date"]}, {record["machine"]}, one thread, torch {record["torch"]}.
- **Licence**: weights MIT, as this repository. Images: {images.licence}
"""


def _branches(record: dict[str, Any]) -> str:
    """A line for encoders that are two networks, else nothing."""
    if "dense_branch_linear_acc1" not in record:
        return ""
    linear, knn = (f"{record[f'dense_branch_{key}']:.2f}" for key in ("linear_acc1", "knn_acc1"))
    return (
        "- **Two networks**: the accuracy above is that of the gated one. The dense one "
        f"(`+gating.eval=dense`) had {linear} % and {knn} %, before rounding.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
