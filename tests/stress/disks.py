# SPDX-License-Identifier: MIT
"""Programs on disks that are full, in folders for scratch without room, with too little memory.

    python -m tests.stress.disks [--kilobytes 40 150 400]

Disks are small tmpfs, where this machine lets one be mounted (root on Linux), else a limit on the
size of a file. Right is: exit code 2 and one sentence, nothing half written under a final name,
and, with room again, the same command ends like one that always had it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.stress import farm, programs
from tests.stress.compare import different
from tests.stress.programs import PRETRAIN, TINY

EXPORT = "-m sparse_ext.export"
RUN = "source/trained_models/mocov2plus/0"


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[bool]:
    """A disk of that size at `folder`; yields whether this machine lets one be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={kilobytes}k"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full(name: str, kilobytes: int, work: Path) -> str:
    """Run a command whose checkpoints do not fit; what is wrong with its end, empty if nothing."""
    script, arguments = programs.COMMANDS[name]
    source, straight, folder = work / "prepared", work / "straight", work / "full"
    source.mkdir(parents=True)
    programs.prepare(name, source)
    # both are at the same place, as some of what they write names it
    shutil.copytree(source, folder)
    farm.run(script, arguments, folder)
    folder.rename(straight)
    with disk(folder, kilobytes) as mounted:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        limits = None if mounted else _small_files(kilobytes)
        ended = farm.Program(script, arguments, folder, limits, log=work / "log").wait()
        if ended.code == 0:
            return f"it fits: {kilobytes} kB are not too few"
        if problem := _wrong(ended, "cannot be"):
            return problem
        if left := list(folder.rglob("*.partial")):
            return f"left: {left}"
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        again = farm.run(script, arguments, folder)
        if again.code:
            return f"with room again: exit {again.code}: {again.text[-300:]}"
        return "; ".join(different(straight, folder))


def _small_files(kilobytes: int):
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 * kilobytes, 1000 * kilobytes))

    return limit


def _wrong(ended: farm.Ended, word: str) -> str:
    """What is wrong with the end of a run that is to be refused."""
    said = ended.text.rpartition("error: ")[2] if "error: " in ended.text else ""
    if ended.traceback or ended.code != 2:
        return f"exit {ended.code}: {ended.text[-600:]}"
    return "" if word in said else f"'{word}' is not named: {said or ended.text[-300:]}"


def export(kilobytes: int, work: Path) -> str:
    """Export onto a disk that is too small, with every format that needs no other library."""
    programs.prepare("linear", work)
    problems = []
    with disk(work / "small", kilobytes) as mounted:
        limits = None if mounted else _small_files(kilobytes)
        for form, name in (("dense", "x.pt"), ("dense", "x.safetensors"), ("slim", "x.pt")):
            arguments = [form, RUN, "--out", f"small/{name}"]
            ended = farm.run(EXPORT, arguments, work, limits=limits)
            word = "mask" if form == "slim" else name  # of a dense run there is nothing to remove
            if problem := _wrong(ended, word):
                problems.append(f"{form} {name}: {problem}")
            problems += [f"left: {path}" for path in (work / "small").iterdir()]
    return "; ".join(problems)


def scratch(work: Path) -> str:
    """TMPDIR has no room, or does not exist: runs do not need it, or say so."""
    work.mkdir(parents=True, exist_ok=True)
    problems = []
    with disk(work / "scratch", 4) as mounted:
        if mounted:
            (work / "scratch" / "taken").write_bytes(b"x" * 4096)
        for place in (work / "scratch", work / "nowhere"):

            def limit(place: Path = place) -> None:
                os.environ["TMPDIR"] = str(place)
                tempfile.tempdir = None

            more = ["data.num_workers=1", "max_epochs=1", f"checkpoint.dir={place.name}-runs"]
            ended = farm.run(PRETRAIN, [*TINY, *more], work, limits=limit)
            if ended.code and (problem := _wrong(ended, "TMPDIR")):
                problems.append(f"{place.name}: {problem}")
    return "; ".join(problems)


def memory(work: Path) -> str:
    """Resident images that do not fit into the memory that a process may have."""
    work.mkdir(parents=True, exist_ok=True)

    def limit() -> None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20), now + (200 << 20)))

    more = ["++data.format=resident", "++data.resident_size=400", "max_epochs=1"]
    ended = farm.run(PRETRAIN, [*TINY, *more], work, limits=limit)
    return _wrong(ended, "memory")


def main(argv: list[str] | None = None) -> int:
    """Print each and what went wrong; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kilobytes", type=int, nargs="+", default=[20, 150, 400])
    args = parser.parse_args(argv)
    farm.preload()
    cases = {
        f"{name} in {size} kB": lambda work, n=name, s=size: full(n, s, work)
        for name in ("pair", "gated", "shared")
        for size in args.kilobytes
    }
    cases |= {"export in 20 kB": lambda work: export(20, work)}
    cases |= {"TMPDIR without room": scratch, "memory too small": memory}
    wrong = 0
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            problem = case(Path(folder))
        wrong += bool(problem)
        print(f"{name}: {problem or 'ok'}", flush=True)
    print(f"{len(cases)} tried, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
