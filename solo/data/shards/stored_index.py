# SPDX-License-Identifier: MIT
"""Lists of what is in large files, kept beside them or in the cache folder. Needs no torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from solo.files.whole import write_text


def fingerprint(kind: str, files: Iterable[str | Path]) -> str:
    """One line that changes whenever one of the files does."""
    files, digest, total = sorted(map(str, files)), hashlib.sha256(), 0
    for file in files:
        stat = os.stat(file)
        total += stat.st_size
        digest.update(f"{os.path.basename(file)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return f"# index of {kind}: version 2, {total} bytes, {digest.hexdigest()[:16]}"


def index_paths(path: str | Path) -> list[Path]:
    """Where the index of `path` may lie: beside it, or in the cache folder under its full path."""
    path = Path(path).resolve()
    name = re.sub(r"[^\w.-]", "_", path.name)  # a pattern has stars
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "solo-learn-sparse"
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    stem = Path(name).stem
    return [path.with_name(name + ".index.txt"), cache / f"{stem}-{digest}.index.txt"]


def read_index(path: str | Path, mark: str) -> list[str] | None:
    """The lines of a stored index that begins with `mark`, None if there is none."""
    for index in index_paths(path):
        try:
            lines = index.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            continue
        if lines[0] == mark and lines[-1] == "":
            return lines[1:-1]
    return None


def write_index(path: str | Path, mark: str, lines: Iterable[str]) -> None:
    """Store the index in the first place that can be written; going without is no error."""
    text = "\n".join([mark, *lines, ""])
    for index in index_paths(path):
        try:
            write_text(index, text)
            return
        except OSError:
            continue
