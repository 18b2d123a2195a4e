# SPDX-License-Identifier: MIT
"""Writes wrong, extreme and odd values into keys of a configuration and runs it.

    python -m tests.stress.fuzz_config --tries 500

Keys and types come from the program's own schema. Right is: the run trains, or it ends with exit
code 2 and one sentence that names the key; never a traceback.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from tests.stress import farm
from tests.stress.programs import LINEAR, PRETRAIN, TINY, prepare

RECIPES = farm.ROOT / "scripts" / "pretrain" / "custom"

OWN = "own images"  # pretraining on a folder, with much left to the program
OWN_IMAGES = [
    *("--config-path", str(RECIPES), "--config-name", "any.yaml", "data.path=images"),
    *("image_size=16", "++backbone.kwargs.width=2", "accelerator=cpu", "hydra.run.dir=."),
    *("method_kwargs.proj_hidden_dim=8", "method_kwargs.proj_output_dim=4"),
    *("method_kwargs.pred_hidden_dim=8", "report=False"),
]
PROGRAMS = (PRETRAIN, PRETRAIN, LINEAR, OWN)
SHORT = ["++max_epochs=1", "++limit_train_batches=2", "++auto_resume.enabled=False"]
VALUES: list[Any] = [
    *(None, "", " ", "None", "text", "a/b", "ä", "x" * 300, "${nowhere}", "???", "1", "True"),
    *(0, 1, 2, 3, -1, -5, 7, 2**31, 2**63, 2**64, 10**30),
    *(0.0, 0.5, 1.0, 1.5, -0.5, 1e-30, 1e30, 1e308),
    *(float("nan"), float("inf"), float("-inf"), True, False),
    *([], [0], [1, 2], ["a"], [[1]], {}, {"a": 1}, {"name": 1}, {"_target_": "os.getcwd"}),
]
#: what takes hours, gigabytes or the network by meaning, not by mistake
LEFT_OUT = {"wandb", "devices", "num_nodes", "fast_dev_run"}
TOO_MUCH = {
    "data.num_workers": 4,
    "max_epochs": 3,
    "overfit_batches": 5,
    "accumulate_grad_batches": 10**6,
    "method_kwargs.proj_hidden_dim": 10**4,
    "method_kwargs.proj_output_dim": 10**4,
    "method_kwargs.queue_size": 10**6,
    "augmentations.0.crop_size": 100,
    "augmentations.0.num_crops": 4,
    "augmentations.0.padding": 100,
    "optimizer.batch_size": 10**6,
    "data.image_size": 100,
    "num_sanity_val_steps": 5,
    "backbone.kwargs.width": 64,
}


@dataclass
class Tally:
    """What became of the tries."""

    tried: int = 0
    trained: int = 0
    refused: int = 0
    tracebacks: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Everything that went wrong."""
        return [*self.tracebacks, *self.other, *self.unnamed]

    def __str__(self) -> str:
        return (
            f"{self.tried} tried: {self.trained} trained, {self.refused} refused by name, "
            f"{len(self.unnamed)} refused without naming the key, {len(self.tracebacks)} "
            f"tracebacks, {len(self.other)} otherwise"
        )


def keys_of(schema: type, path: str = "") -> Iterator[str]:
    """All dotted keys of a schema."""
    from solo.values import hints

    for item in fields(schema):
        name, kind = f"{path}{item.name}", hints(schema)[item.name]
        yield name
        if is_dataclass(kind):
            yield from keys_of(kind, f"{name}.")


def keys(program: str) -> dict[str, list[str]]:
    """Dotted keys of a program, each with the arguments that turn its section on."""
    from solo.args import schema
    from solo.methods import METHODS
    from sparse_ext.config import METHODS as PRUNING
    from sparse_ext.gating.config import METHODS as GATING

    if program == LINEAR:
        found = [*keys_of(schema.Linear), *keys_of(schema.TrainerArguments)]
        return {key: [] for key in found if key.split(".")[0] not in LEFT_OUT}
    plain = [
        *keys_of(schema.Pretrain),
        *keys_of(schema.TrainerArguments),
        *keys_of(schema.Augmentation, "augmentations.0."),
        *(f"method_kwargs.{name}" for name in METHODS["mocov2plus"].KWARGS),
        *(f"optimizer.kwargs.{name}" for name in schema.OPTIMIZER_KWARGS["sgd"]),
        *("backbone.kwargs.width", "backbone.kwargs.depth"),
    ]
    found = {key: [] for key in plain if key.split(".")[0] not in LEFT_OUT}
    for name in PRUNING:
        found |= {key: [f"+sparse={name}"] for key in keys_of(PRUNING[name], "sparse.")}
    found |= {key: ["+gating=cdg"] for key in keys_of(GATING["cdg"], "gating.")}
    for kind in ("adamw", "lars"):
        for name in schema.OPTIMIZER_KWARGS[kind]:
            found[f"optimizer.kwargs.{name}"] = [f"optimizer.name={kind}"]
    return found


def draw_images(folder: Path) -> None:
    """Twenty-four pictures of two classes."""
    from solo.data.datasets.digits import DigitsDataset

    images = DigitsDataset(train=False)
    for number in range(24):
        image, _ = images[number]
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def override(key: str, value: Any) -> str:
    """Hydra's spelling of `key: value`."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        text = f"'{value}'" if "'" not in value else text
    elif isinstance(value, float):
        text = repr(value)
    else:
        text = json.dumps(value).replace('"', "")
    if key.startswith("augmentations.0."):  # Hydra has no path into a list
        *path, last = key.removeprefix("augmentations.0.").split(".")
        entry: dict[str, Any] = {"crop_size": 16, "num_crops": 2, "rrc": {"enabled": True}}
        inner = entry
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = _Raw(text)
        return f"augmentations=[{_spelled(entry)}]"
    return f"++{key}={text}"


class _Raw(str):
    pass


def _spelled(node: Any) -> str:
    if isinstance(node, dict):
        return "{" + ",".join(f"{k}:{_spelled(v)}" for k, v in node.items()) + "}"
    return str(node).lower() if isinstance(node, bool) else str(node)


def fuzz(tries: int, work: Path, seed: int = 0, programs=PROGRAMS) -> Tally:
    """Try so many values in keys drawn at random."""
    draw, tally = random.Random(seed), Tally()
    prepare("linear", work)
    draw_images(work / "images")
    known = {program: keys(program) for program in set(programs)}
    while tally.tried < tries:
        program = draw.choice(programs)
        key = draw.choice(list(known[program]))
        value = draw.choice(VALUES)
        most = TOO_MUCH.get(key)
        if most is not None and isinstance(value, (int, float)) and most < value < float("inf"):
            continue
        attempt(program, key, value, known[program][key], work, tally)
        if tally.tried % 20 == 0:
            print(f"  {tally}", file=sys.stderr, flush=True)
    return tally


def attempt(
    program: str, key: str, value: Any, also: list[str], work: Path, tally: Tally
) -> farm.Ended:
    """Run one, and note what became of it."""
    base = TINY
    script = PRETRAIN if program == OWN else program
    if program == OWN:
        base = OWN_IMAGES
    if program == LINEAR:
        base = [*TINY[:3], "tiny_linear.yaml"]
        base += ["pretrained_feature_extractor=source/trained_models/mocov2plus/0"]
    arguments = [*base, *(s for s in SHORT if s.split("=")[0].lstrip("+") != key), *also]
    ended = farm.run(script, [*arguments, override(key, value)], work, timeout=600)
    said = f"{program} {' '.join(also)} {override(key, value)}"
    tally.tried += 1
    known = set(tally.problems)
    if ended.traceback:
        last = [line for line in ended.text.splitlines() if line.strip()][-1:]
        tally.tracebacks.append(f"traceback: {said}: {' '.join(last)[:300]}")
    elif ended.code == 0:
        tally.trained += 1
    elif ended.code == 2 and "error: " in ended.text:
        message = ended.text.rpartition("error: ")[2]
        named = key.split(".")[-1] in message or key.split(".")[0] in message
        tally.refused += named
        if not named:
            tally.unnamed.append(f"unnamed: {said}: {message[:300]}")
    else:
        tally.other.append(f"{said}: exit {ended.code}: {ended.text[-300:]}")
    for problem in set(tally.problems) - known:
        print(f"  {problem}", flush=True)
    return ended


def main(argv: list[str] | None = None) -> int:
    """Print the tally and what went wrong; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    farm.preload()
    from sparse_ext.extension import register

    register()
    with tempfile.TemporaryDirectory() as folder:
        tally = fuzz(args.tries, Path(folder), args.seed)
    print(tally)
    return int(bool(tally.tracebacks or tally.other))


if __name__ == "__main__":
    sys.exit(main())
