# SPDX-License-Identifier: MIT
"""One program at a time in a folder, on one machine or on several that share a disk.

The lock is the system's own (flock): it goes with the process that holds it, however that ends.
Beside it lies a record of who holds it. Disks whose machines do not see each other's locks are
covered by that record: its holder renews it every few seconds.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from solo.errors import BusyError, OutputError
from solo.files.whole import has_died, refusal, write_json

LOCK, RECORD = ".lock", ".owner.json"
HEARTBEAT = 5.0  # seconds between two signs of life
PATIENCE = 20.0  # seconds without one after which a holder on another machine counts as dead
FORGOTTEN = 3600.0  # a record that has not changed for so long is not even watched


class Holder(NamedTuple):
    """Who holds a folder: process id, machine, and since when (local time)."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class FolderLock:
    """Keeps other programs out of a folder, from `acquire` to `release`; also a context manager.

    >>> with FolderLock("trained_models/byol/0"):  # doctest: +SKIP
    ...     train()

    Args:
        folder: is made if it does not exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._record = self.folder / RECORD
        self._lock = FileLock(self.folder / LOCK, thread_local=False)
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the folder, also from a program that is dead.

        Raises:
            BusyError: another program is at work there.
            OutputError: the folder cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._wait_for_the_dead()
            if self._alive_elsewhere():
                _give_up(self._lock)
                raise self._busy()
            since = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
            write_json(self._record, Holder(os.getpid(), socket.gethostname(), since)._asdict())
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"'{self.folder}' cannot be used: {refusal(error)}") from error
        self._released.clear()
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        """Let others into the folder; a second call changes nothing."""
        if not self._lock.is_locked:
            return
        self._released.set()
        self._record.unlink(missing_ok=True)
        _give_up(self._lock)

    def free(self) -> bool:
        """Whether no program is at work in the folder."""
        try:
            self.acquire()
        except BusyError:
            return False
        self.release()
        return True

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def _wait_for_the_dead(self) -> None:
        """Take the system's lock; children of a dead process keep it for a moment longer."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return _take(self._lock, timeout=0)
            except Timeout:
                found = self.holder()
                dead = found and found.host == socket.gethostname() and has_died(found.pid)
                if not dead or time.monotonic() > end:
                    raise self._busy() from None
                time.sleep(0.2)

    def _alive_elsewhere(self) -> bool:
        """With the system's lock in hand: does a holder on another machine renew its record?"""
        found = self.holder()
        if found is None or found.host == socket.gethostname():
            return False
        seen = self._renewed()
        if time.time() - seen > FORGOTTEN:
            return False
        print(f"{self.folder}: its lock names {found}; is it alive? (waiting {PATIENCE:.0f} s)")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(0.5, PATIENCE))
            if self._renewed() != seen:
                return True
        return False

    def holder(self) -> Holder | None:
        """Who holds the folder, or held it and died; None where nothing says so."""
        try:
            return Holder(**json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _renewed(self) -> float:
        try:
            with open(self._record, "rb") as file:  # opening asks the disk's server again
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return 0.0

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT):
            try:
                os.utime(self._record)
            except OSError:  # the folder is gone; the run will meet that by itself
                return

    def _busy(self) -> BusyError:
        found = self.holder()
        who = "another program" if found is None else f"another program ({found})"
        return BusyError(
            f"{who[0].upper()}{who[1:]} is at work in '{self.folder}'. Wait for it or end it, or "
            "choose another folder."
        )


@contextmanager
def one_at_a_time(folder: str | Path, name: str = LOCK) -> Iterator[None]:
    """Inside, other programs wait that ask for the same; for work of a moment.

    Args:
        folder: that the work is about.
        name: of the lock's file; another one than the usual for work in a folder that a run holds.
    """
    lock = FileLock(Path(folder) / name)
    _take(lock)
    try:
        yield
    finally:
        _give_up(lock)


def _take(lock: FileLock, timeout: float = -1) -> None:
    """Acquire; once more if the holder before has removed the file that was waited for."""
    while True:
        lock.acquire(timeout=timeout)
        if os.path.exists(lock.lock_file):
            return
        lock.release()


def _give_up(lock: FileLock) -> None:
    """Remove the file of the lock, then let others in, so that nothing is left of it."""
    with suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()
