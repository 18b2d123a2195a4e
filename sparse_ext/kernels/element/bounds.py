# SPDX-License-Identifier: MIT
"""What has been measured about the kernel on this machine, in a file that processes share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from solo.errors import OutputError
from solo.files.whole import write_json

NOTHING = (-1.0, 2.0)  # densities lie between
PATIENCE = 60.0  # seconds that a process waits for another one's measurements


class Bounds:
    """Densities up to which the kernel has won and from which it has lost, by case.

    A decision stands: bounds only move towards each other, and never past a density that has been
    decided. Processes that share the file measure one at a time and take over what the others have
    found, so that all of them, and all later ones, decide alike.

    Args:
        path: of the file; None = this process remembers.

    Attributes:
        known: bounds by case.
        asked: the cases that this process has decided.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, tuple[float, float]] = {}
        self.asked: set[str] = set()
        self._patience = PATIENCE
        self._read()

    def decide(self, key: str, density: float, measure: Callable[[], bool]) -> bool:
        """Whether the kernel wins: as is known, or else as `measure` finds it now."""
        self.asked.add(key)
        known = self.decided(key, density)
        if known is not None:
            return known
        with self._alone():
            self._read()
            known = self.decided(key, density)
            return self.learn(key, density, measure()) if known is None else known

    def decided(self, key: str, density: float) -> bool | None:
        """Whether the kernel wins; None if that is not known."""
        won, lost = self.known.get(key, NOTHING)
        return True if density <= won else False if density >= lost else None

    def learn(self, key: str, density: float, wins: bool) -> bool:
        """Move a bound to `density`, unless another process has decided it; what then holds."""
        self._read()
        self.adopt({key: (density, NOTHING[1]) if wins else (NOTHING[0], density)})
        try:
            if self.path is not None:
                write_json(self.path, self.known, indent=None)
        except OutputError:
            self.path = None  # nowhere to keep them: this process remembers
        return self.decided(key, density) is True

    def adopt(self, found: Mapping[str, Any]) -> None:
        """Take over bounds, as far as they say nothing else than those that are known."""
        for key, (low, high) in found.items():
            won, lost = self.known.get(key, NOTHING)
            won = max(won, low) if low < lost else won
            self.known[key] = won, min(lost, high) if high > won else lost

    def _read(self) -> None:
        try:
            if self.path is not None:
                self.adopt(_checked(json.loads(self.path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            pass  # nothing measured yet, or by half: measured again

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside, no other process measures, if the file system knows locks.

        One that has been stopped in the middle is waited for once.
        """
        if self.path is None:
            yield
            return
        lock = FileLock(f"{self.path}.lock")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=self._patience)
        except Timeout:
            self._patience = 0.0
        except (OSError, NotImplementedError):
            pass  # `learn` finds out whether there is a file at all
        try:
            yield
        finally:
            lock.release()


def _checked(content: Any) -> dict[str, tuple[float, float]]:
    """What a file holds, as far as it can be bounds.

    Raises:
        ValueError: it holds something else.
    """
    if not isinstance(content, dict):
        raise ValueError("no bounds")
    found = {}
    for key, pair in content.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("no bounds")
        found[key] = float(pair[0]), float(pair[1])
    return found
