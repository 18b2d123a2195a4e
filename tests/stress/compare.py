# SPDX-License-Identifier: MIT
"""Whether two folders of runs hold the same: every file, every tensor, every counter."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

# the lock of a folder (empty, it has no owner any more), Hydra's log of messages, our own log
_IGNORED = (".lock", ".log")
# what clocks say, and what of a series of runs was there already
_UNCOMPARED = (
    *("seconds", "seconds_per_step", "images_per_second", "steps_per_second", "milliseconds"),
    "reused",
)


def different(one: Path, other: Path) -> list[str]:
    """What differs between two folders, in words; empty where they are the same."""
    files = [
        {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and _counts(p)}
        for root in (one, other)
    ]
    found = [f"only in the straight run: {name}" for name in sorted(files[0] - files[1])]
    found += [f"only in the stopped run: {name}" for name in sorted(files[1] - files[0])]
    folders = [{str(p.relative_to(r)) for p in r.rglob("*") if p.is_dir()} for r in (one, other)]
    found += [f"folder of one run only: {name}" for name in sorted(folders[0] ^ folders[1])]
    for name in sorted(files[0] & files[1]):
        contents = [read(root / name) for root in (one, other)]
        differs = [f"{name}: {where}" for where in _differences(*contents)][:4]
        if not differs and name.endswith(".ckpt"):
            same = (one / name).read_bytes() == (other / name).read_bytes()
            differs = [] if same else [f"{name}: equal content in other bytes"]
        found += differs
    return found


def _counts(path: Path) -> bool:
    return not (path.name.startswith(_IGNORED) or path.suffix == ".log")


def read(path: Path) -> Any:
    """Content by kind of file, clocks left out."""
    if path.suffix == ".ckpt":
        return torch.load(path, map_location="cpu", weights_only=False)
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix in (".html", ".png"):  # drawn from the other files, with clocks
        return path.stat().st_size > 0
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".csv":
        return _timeless(list(csv.DictReader(path.read_text().splitlines())))
    return path.read_bytes()


def _timeless(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _timeless(v) for k, v in node.items() if not str(k).endswith(_UNCOMPARED)}
    return [_timeless(item) for item in node] if isinstance(node, list) else node


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in {**one, **other}:
            if key not in one or key not in other:
                yield f"{path}/{key} is in one of them only"
            else:
                yield from _differences(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{path} has {len(one)} and {len(other)} items"
        for index, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _differences(a, b, f"{path}/{index}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        if not same or not torch.equal(one.nan_to_num(7), other.nan_to_num(7)):
            yield f"{path} differs"
    elif one != other and not (one != one and other != other):
        yield f"{path}: {one!r:.60} and {other!r:.60}"
