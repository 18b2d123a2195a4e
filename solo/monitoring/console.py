# SPDX-License-Identifier: MIT
"""What programs say while they work: lines beside progress bars, and bars for silent waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
PATIENCE = 2.0  # seconds that a program may be silent
_TO_A_FILE = 10.0  # seconds between two lines of a bar that nobody watches


def say(*lines: str, error: bool = False) -> None:
    """Print whole lines; a progress bar moves out of the way.

    Args:
        *lines: of text.
        error: print them on standard error, not on standard output.
    """
    file = sys.stderr if error else sys.stdout
    if file is not None:
        tqdm.write("\n".join(lines), file=file)
        file.flush()


def bar(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """`items`, with a bar on standard error once they have taken two seconds.

    Args:
        items: to iterate over.
        what: is done with them, such as `decoding images`.
        total: how many there are, where `items` have no length.
    """
    return tqdm(items, what, total, **_options())


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Inside, the seconds are shown on standard error once there have been two of them.

    For work of a library that says nothing about how far it is.

    Args:
        what: is done, such as `UMAP of 2,000 images`.
    """
    done = threading.Event()
    started = time.monotonic()

    def count() -> None:
        if done.wait(PATIENCE):
            return
        step = 0.5 if _watched() else _TO_A_FILE
        end = "" if _watched() else "\n"
        while True:
            line = f"{what}: {duration(time.monotonic() - started)}"
            print(f"\r{line} ..." if _watched() else f"{line} so far", end=end, file=sys.stderr)
            sys.stderr.flush()
            if done.wait(step):
                break
        if _watched():
            print(f"\r{' ' * (len(line) + 4)}\r", end="", file=sys.stderr, flush=True)

    counting = threading.Thread(target=count, daemon=True)
    counting.start()
    try:
        yield
    finally:
        done.set()
        counting.join()


def command(name: str, otherwise: str) -> str:
    """How to start another program: `solo-NAME` where this one was started like that.

    Args:
        name: of the console command, `knn`.
        otherwise: the command in a checkout, `python3 main_knn.py`.
    """
    return f"solo-{name}" if Path(sys.argv[0]).name.startswith("solo-") else otherwise


def duration(seconds: float) -> str:
    """`seconds` as one would say them: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 days 4 h`."""
    seconds = round(seconds)
    for size, big, small, unit in ((86400, "days", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            big = "day" if (whole, big) == (1, "days") else big
            return f"{whole} {big} {rest // small} {unit}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _options() -> dict[str, object]:
    pace = 0.1 if _watched() else _TO_A_FILE
    return {"delay": PATIENCE, "leave": False, "mininterval": pace, "disable": sys.stderr is None}


def short(number: float) -> str:
    """A count in three digits: `512`, `44.3 k`, `11.2 M`, `1.82 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def rate(per_second: float) -> str:
    """How many in a second: `1,234`, with a decimal below ten, `2.4`."""
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"
