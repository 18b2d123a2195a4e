# SPDX-License-Identifier: MIT
"""Kills programs at random moments and starts them again, until they end like one that ran through.

python -m tests.stress.kills --kills 100 [NAME ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.stress import farm, programs
from tests.stress.compare import different

MOST_STARTS = 4
LONGEST = 600  # seconds of one run


@dataclass
class Tally:
    """How many runs were stopped, and what became of them."""

    stopped: int = 0
    moments: list[str] = field(default_factory=list)  # of the run that is tried
    changed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.stopped} stopped; {len(self.lost)} not to be started again, "
            f"{len(self.changed)} ended otherwise, {len(self.tracebacks)} tracebacks"
        )

    @property
    def problems(self) -> list[str]:
        """Everything that went wrong."""
        return [*self.lost, *self.changed, *self.tracebacks]


def stop_at_random(
    name: str,
    times: int,
    work: Path,
    seed: int = 0,
    signals: tuple[int, ...] = (signal.SIGKILL,),
    commands=programs.COMMANDS,
) -> Tally:
    """Stop a command so often, at moments spread over its whole duration.

    Args:
        name: of the command.
        times: stops; a run may be stopped up to three times before it ends.
        work: folder to work in.
        seed: of the moments.
        signals: which to send, one after the other.
        commands: name -> script and arguments.
    """
    source, folder = work / f"{name}-source", work / name
    source.mkdir(parents=True)
    programs.prepare(name, source)
    ended = farm.run(*commands[name], _copy(source, folder), LONGEST)
    if ended.code or ended.traceback:
        raise RuntimeError(f"{name} does not even run through:\n{ended.text}")
    # all runs are in one folder, one after the other: some of what they write names it
    straight = folder.rename(work / f"{name}-straight")
    draw, tally, shown = random.Random(f"{seed}-{name}"), Tally(), set()
    for number in range(3 * times):  # some end before their moment has come
        _copy(source, folder)
        said = f"{name} #{number} (seed {seed})"
        well = _stop_and_finish(commands[name], folder, ended.seconds, draw, signals, tally, said)
        if well and (found := different(straight, folder)):
            tally.changed.append(f"{said} after {tally.moments}: {found}")
        shutil.rmtree(folder)
        print(f"  {name}: {number + 1} runs, {tally}", file=sys.stderr, flush=True)
        for problem in set(tally.problems) - shown:
            print(f"    {problem}", file=sys.stderr, flush=True)
            shown.add(problem)
        if tally.stopped >= times:
            break
    return tally


def _stop_and_finish(
    command: tuple[str, list[str]],
    folder: Path,
    seconds: float,
    draw: random.Random,
    signals: tuple[int, ...],
    tally: Tally,
    said: str,
) -> bool:
    """Stop a run up to three times, then let it end; whether it ended well."""
    tally.moments = []
    for start in range(MOST_STARTS):
        process = farm.Program(*command, folder)
        if start < MOST_STARTS - 1 and (start == 0 or draw.random() < 0.3):
            moment, at_a_file = draw.uniform(0.05, 1.15) * seconds, draw.random() < 0.5
            tally.moments.append(f"{moment:.2f} s" + (" and a change of files" * at_a_file))
            if not _sleep(process, moment) and not (at_a_file and _until_change(process, folder)):
                tally.stopped += 1
                process.kill(signals[len(tally.moments) % len(signals)])
                after = process.wait(LONGEST)
                if after.traceback:
                    tally.tracebacks.append(f"{said} at {tally.moments}: {after.text[-1500:]}")
                continue
        after = process.wait(LONGEST)
        if after.traceback:
            tally.tracebacks.append(f"{said} at {tally.moments}: {after.text[-1500:]}")
        if after.code:
            tally.lost.append(f"{said} at {tally.moments}: exit {after.code}: {after.text[-1500:]}")
        return not after.code
    return False


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def _sleep(process: farm.Program, seconds: float) -> bool:
    """Wait; whether the process has ended by itself (its status is left for `wait`)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if _has_ended(process):
            return True
        time.sleep(0.005)
    return False


def _until_change(process: farm.Program, folder: Path) -> bool:
    """Wait until a file comes or goes: the moments at which a kill is worst.

    Returns:
        whether the process has ended by itself.
    """
    before = _names(folder)
    while not _has_ended(process):
        if _names(folder) != before:
            return False
        time.sleep(0.0005)
    return True


def _names(folder: str | Path) -> set[str]:
    found = set()
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            found.add(entry.path)
            if entry.is_dir(follow_symlinks=False):
                found |= _names(entry.path)
    return found


def _has_ended(process: farm.Program) -> bool:
    return bool(os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def main(argv: list[str] | None = None) -> int:
    """Print a line for each command; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(programs.COMMANDS))
    parser.add_argument("--kills", type=int, default=20, help="stops of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", nargs="+", default=["SIGKILL"])
    args = parser.parse_args(argv)
    farm.preload()
    signals = tuple(getattr(signal, name) for name in args.signals)
    wrong = False
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            tally = stop_at_random(name, args.kills, Path(folder), args.seed, signals)
        print(f"{name}: {tally}", flush=True)
        for problem in tally.problems:
            print(f"  {problem}", flush=True)
        wrong = wrong or bool(tally.problems)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
