# SPDX-License-Identifier: MIT
"""Changes bytes and content of checkpoints at random and reads them, or goes on from them.

    python -m tests.stress.damage --bytes 500 --content 60

Right is: the file is read as it was, or a `CheckpointError` says what is wrong with it. A run that
is to go on from changed content trains or ends with exit code 2 and a sentence that names the file.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.stress import farm, programs

PLACE = st.floats(0, 1)
STEP = st.tuples(
    st.sampled_from(["cut", "flip", "zero", "remove", "insert", "repeat"]),
    PLACE,
    st.integers(1, 4000),
)
VALUES: list[Any] = [
    *(None, True, -1, 0, 7, 2**70, 0.5, float("nan"), float("inf"), "", "text", b"bytes"),
    *([], [1], {}, {"a": 1}, torch.zeros(0), torch.zeros(3), torch.full((2, 2), float("nan"))),
]
GONE = object()


def changed(content: bytes, steps: list[tuple[str, float, int]]) -> bytes:
    """Bytes after some mishaps, each somewhere and of some length."""
    for kind, place, length in steps:
        at = int(place * len(content))
        part = content[at : at + length]
        content = {
            "cut": content[:at],
            "flip": content[:at] + bytes(b ^ 16 for b in part[:3]) + content[at + 3 :],
            "zero": content[:at] + bytes(len(part)) + content[at + length :],
            "remove": content[:at] + content[at + length :],
            "insert": content[:at] + b"\x7f" * length + content[at:],
            "repeat": content[:at] + part + content[at:],
        }[kind]
    return content


def damage_bytes(source: Path, tries: int, work: Path) -> tuple[int, list[str]]:
    """Read a checkpoint with damaged bytes; how many were tried, and what went wrong."""
    from solo.checkpoints.files import read_checkpoint
    from solo.checkpoints.training_state import check_training_state, read_training_state
    from solo.errors import CheckpointError

    whole, path = source.read_bytes(), work / source.name
    wanted = read_training_state(source)["state_dict"]
    tried, problems = 0, []

    @settings(
        max_examples=tries,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(STEP, min_size=1, max_size=3))
    def attempt(steps: list[tuple[str, float, int]]) -> None:
        nonlocal tried
        tried += 1
        path.write_bytes(changed(whole, steps))
        try:
            read_checkpoint(path)
        except CheckpointError:
            pass
        except Exception as error:
            problems.append(f"{steps}: read_checkpoint: {type(error).__name__}: {error}"[:300])
        try:
            found = read_training_state(path)
            check_training_state(found, path)
        except CheckpointError as error:
            if path.name not in str(error):
                problems.append(f"{steps}: the file is not named: {error}"[:300])
            return
        except Exception as error:
            problems.append(f"{steps}: {type(error).__name__}: {error}"[:300])
            return
        if any(not torch.equal(v, found["state_dict"].get(k)) for k, v in wanted.items()):
            problems.append(f"{steps}: other weights are read")

    attempt()
    return tried, problems


def paths(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to every value in nested containers."""
    items = ()
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def replace(content: Any, path: tuple, value: Any) -> None:
    """Put another value at a place of nested containers, or take it away."""
    for key in path[:-1]:
        content = content[key]
    if value is GONE:
        del content[path[-1]]
    else:
        content[path[-1]] = value


def change_content(folder: Path, tries: int, seed: int, say: Callable = print) -> list[str]:
    """Let a finished run go on for an epoch, from its last checkpoint with one value changed."""
    newest = max(folder.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    draw, problems = random.Random(seed), []
    script, arguments = programs.COMMANDS["pair"]
    for _ in range(tries):
        content = torch.load(newest, weights_only=True)
        known = list(paths(content))
        depth = draw.randint(1, max(map(len, known)))
        path = draw.choice([p for p in known if len(p) == depth])
        value = draw.choice([*VALUES, GONE])
        replace(content, path, value)
        wrong = folder / "wrong.ckpt"
        torch.save(content, wrong)
        more = ["++resume_from_checkpoint=wrong.ckpt", "max_epochs=4", "checkpoint.dir=again"]
        ended = farm.run(script, [*arguments, *more], folder)
        shown = "taken away" if value is GONE else f"{value!r:.40}"
        said = f"{'/'.join(map(str, path))}: {shown}"
        last = ended.text.strip().splitlines()[-1:]
        if ended.traceback or ended.code not in (0, 2):
            problems.append(f"{said}: exit {ended.code}: {last}")
        elif ended.code == 2 and "wrong.ckpt" not in ended.text.rpartition("error: ")[2]:
            problems.append(f"{said}: the file is not named: {last}")
        say(f"  {said}: exit {ended.code}: {last[0][:160] if last else ''}")
    return problems


def straight(work: Path) -> Path:
    """The folder of a finished run."""
    work.mkdir()
    ended = farm.run(*programs.COMMANDS["pair"], work)
    if ended.code:
        raise RuntimeError(ended.text)
    return work


def main(argv: list[str] | None = None) -> int:
    """Print how many were tried and what went wrong; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=300)
    parser.add_argument("--content", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    farm.preload()
    with tempfile.TemporaryDirectory() as name:
        folder = straight(Path(name) / "run")
        problems = change_content(folder, args.content, args.seed)
        print(f"content: {args.content} tried, {len(problems)} wrong")
        tried, more = damage_bytes(next(folder.rglob("*-ep=2.ckpt")), args.bytes, Path(name))
        print(f"bytes: {tried} tried, {len(more)} wrong")
    for problem in [*problems, *more]:
        print(f"  {problem}")
    return int(bool(problems or more))


if __name__ == "__main__":
    sys.exit(main())
