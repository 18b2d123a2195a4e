# SPDX-License-Identifier: MIT
"""Run finished cells a second time and compare every figure, and the encoder, bit for bit.

python -m scripts.experiments.leaderboard.again BOARD FOLDER [--count 2] [--cells NAME ...]

Bit for bit holds on one machine with one number of threads and one version of torch.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.experiments import programs
from scripts.experiments.leaderboard import results
from scripts.experiments.leaderboard.cells import cells
from scripts.experiments.leaderboard.protocol import PROTOCOLS, protocol, run_folder
from scripts.experiments.leaderboard.run import run_cell
from solo.errors import DataError, did_you_mean
from solo.programs.app import long_program

SAME = ("linear_acc1", "knn_acc1", "measured_sparsity", "macs_effective", "bytes", "overrides")
SAME = (*SAME, "dense_branch_linear_acc1", "dense_branch_knn_acc1")  # where there is one


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat some cells; 1 if one came out differently."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("board", choices=PROTOCOLS)
    parser.add_argument("folder", type=Path, help="of the leaderboard")
    parser.add_argument("--count", type=int, default=2, help="cells chosen at random")
    parser.add_argument("--cells", nargs="*", default=[], metavar="NAME", help="these instead")
    parser.add_argument("--data", type=Path)
    args = parser.parse_args(argv)
    return long_program(lambda: _repeat(args))


def _repeat(args: argparse.Namespace) -> int:
    known = {cell.name for cell in cells(args.board)}  # not what an older list of cells has left
    done = {name: one for name, one in results.read(args.folder).items() if name in known}
    names = args.cells or choose(done, args.count)
    other = 0
    for name in names:
        if name not in done:
            raise DataError(f"{args.folder}: no finished cell '{name}'. {did_you_mean(name, done)}")
        found = list(repeat(args.board, args.folder.resolve(), name, done[name], args.data))
        print("\n".join(found) or f"{name}: the same, bit for bit", flush=True)
        other += bool(found)
    return 1 if other else 0


def choose(done: dict[str, dict[str, Any]], count: int) -> list[str]:
    """So many finished cells at random; not ASP's, which start from another cell's weights.

    Raises:
        DataError: there are not so many.
    """
    names = [name for name, record in done.items() if record["method"] != "asp"]
    if len(names) < count:
        raise DataError(f"Only {len(names)} cells have finished that can be repeated.")
    return random.Random().sample(names, count)


def repeat(
    board: str, folder: Path, name: str, record: dict[str, Any], data: Path | None = None
) -> Iterator[str]:
    """Run a cell again below `folder/again`; what differs, one sentence each."""
    cell, again = results.named(board, name), folder / "again"
    plan = protocol(board)
    own = set(plan.pretraining(cell, record["setting"]))
    images = set(plan.images(data)[0])
    more = [word for word in record["overrides"] if word not in own | images]
    second = run_cell(plan, cell, again, more, data=data, setting=record["setting"])
    for key in SAME:
        if second.get(key) != record.get(key):
            yield f"{name}: {key} was {record.get(key)} and is {second.get(key)}"
    files = [run_folder(place, cell) / "encoder.safetensors" for place in (folder, again)]
    if files[0].read_bytes() != files[1].read_bytes():
        yield f"{name}: the encoders differ"


if __name__ == "__main__":
    programs.require_checkout()
    sys.exit(main())
