# SPDX-License-Identifier: MIT
"""Checkpoints in fewer bytes: the same zip archive with its records compressed (free of torch).

`torch.save` writes a zip archive whose records are stored as they are; `torch.load` reads
compressed ones as well, so a packed file needs no program of ours. Floats of a trained network
have no repeated strings, but their zeros, signs and exponents are frequent bytes: Huffman codes
alone find those in a third of the time that a search for repetitions takes, and leave less.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from solo.files.whole import whole_file

SMALL = 4096  # bytes; smaller records are stored as they are
AT_ONCE = 8  # records in memory
WORKERS = 4
_LIMIT = 0xFFFFFFFF  # bytes; what the plain form of the archive can address
_VERSION, _DEFLATED = 20, 8
_DATE = 0x21  # 1980-01-01: equal content makes equal files


class _Record(NamedTuple):
    """One record: its name, its bytes as written, and what describes them."""

    name: bytes
    content: bytes
    method: int
    checksum: int
    size: int


def pack(path: str | Path) -> bool:
    """Compress the records of a checkpoint, in place; it changes at once or not at all.

    Args:
        path: what `torch.save` has written.

    Returns:
        whether it is packed now: not if it is no zip archive, or too large for the plain form of
        one (4 GiB).

    Raises:
        OutputError: the disk refuses the file.
    """
    path = Path(path)
    if path.stat().st_size >= _LIMIT or not zipfile.is_zipfile(path):
        return False
    with whole_file(path) as partial, open(partial, "wb") as target:
        directory, count = b"", 0
        for record in _compressed(path):
            offset, count = target.tell(), count + 1
            sizes = (record.checksum, len(record.content), record.size, len(record.name))
            about = struct.pack("<HHHHHIIIH", _VERSION, 0, record.method, 0, _DATE, *sizes)
            target.write(b"PK\x03\x04" + about + struct.pack("<H", 0) + record.name)
            target.write(record.content)
            directory += b"PK\x01\x02" + struct.pack("<H", _VERSION) + about
            directory += struct.pack("<HHHHII", 0, 0, 0, 0, 0, offset) + record.name
        start = target.tell()
        target.write(directory)
        ends = (0, 0, count, count, len(directory), start, 0)
        target.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", *ends))
    return True


def _compressed(path: Path) -> Iterator[_Record]:
    with zipfile.ZipFile(path) as source, ThreadPoolExecutor(WORKERS) as workers:
        names = iter(source.namelist())
        while batch := list(islice(names, AT_ONCE)):
            yield from workers.map(_compress, batch, map(source.read, batch))


def _compress(name: str, content: bytes) -> _Record:
    about = name.encode("ascii"), zlib.crc32(content), len(content)
    coder = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zlib.Z_HUFFMAN_ONLY)
    short = b"" if len(content) < SMALL else coder.compress(content) + coder.flush()
    if short and len(short) < len(content):
        return _Record(about[0], short, _DEFLATED, *about[1:])
    return _Record(about[0], content, 0, *about[1:])
