# SPDX-License-Identifier: MIT
"""Files that appear under their name at once and complete, or not at all (free of torch)."""

from __future__ import annotations

import glob
import json
import os
import shutil
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from solo.errors import OutputError

#: what files are called until they are complete
SUFFIX = ".partial"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; after the block it becomes `path`.

    The folder is made. A block that raises leaves nothing behind, and what was at `path` stays.
    What a process that was killed has left of the same file on this machine is removed.

    >>> with whole_file("figures/summary.txt") as partial:  # doctest: +SKIP
    ...     partial.write_text("done")

    Raises:
        OutputError: the disk refuses the file: it is full or read-only, or there is a folder of
            that name.
    """
    path = Path(path)
    # a name per process, so that two of them never write into each other's file
    partial = path.with_name(f"{path.name}.{_machine()}-{os.getpid()}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_of_the_dead(path)
        yield partial
        os.replace(partial, path)
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        raise OutputError(f"'{path}' cannot be written: {reason}") from error
    finally:
        _remove(partial)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8 to `path`, at once or not at all; returns `path`."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, content: Mapping[str, Any], indent: int | None = 1) -> Path:
    """Write `content` as a JSON object to `path`, at once or not at all; returns `path`.

    What JSON has no form for is written as text.
    """
    return write_text(path, json.dumps(content, indent=indent, default=str) + "\n")


def remove_partial(folder: str | Path) -> None:
    """Delete what a killed run has left half written in `folder`."""
    for path in Path(folder).glob(f"*{SUFFIX}"):
        _remove(path)


def refusal(error: BaseException) -> str | None:
    """Why the disk has refused a file, None where `error` says something else.

    torch's writer and that of safetensors report a full disk by errors of their own kinds.
    """
    if isinstance(error, OutputError):
        return None
    if isinstance(error, OSError):
        return error.strerror or str(error)
    kind, text = type(error).__name__, str(error)
    if kind == "SafetensorError" and "os error" in text:
        return text.rpartition("I/O error: ")[2]
    if kind == "RuntimeError" and ("PytorchStreamWriter" in text or "unexpected pos" in text):
        return "the disk is full or has failed"
    return None


def has_died(pid: int) -> bool:
    """Whether no process of that number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


@cache
def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _remove_of_the_dead(path: Path) -> None:
    """Remove what killed processes of this machine have left of `path`."""
    start = f"{path.name}.{_machine()}-"
    for left in path.parent.glob(f"{glob.escape(start)}*{SUFFIX}"):
        pid = left.name.removeprefix(start).removesuffix(SUFFIX)
        if pid.isdigit() and has_died(int(pid)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):  # it was never made, or the disk is gone
            path.unlink()
