# SPDX-License-Identifier: MIT
"""How a pass is cut: images per group, register tiles, source channels per block.

`cut` takes the cheapest by a model of cycles, which knows the instructions of the inner loop, the
L1 cache, sums that wait in L2 between blocks, and what packing a tile with its halo costs. Its
constants were fitted to timings on one processor (Zen 5); a wrong guess costs time, no accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

MAX_ROWS, MAX_VECTORS = 6, 28  # as in products.h
SUMS = 512 * 1024  # bytes of the sums of a target block, which lie in L2


@dataclass(frozen=True)
class Machine:
    """What the compiled library can hold.

    Attributes:
        width: elements of a vector.
        size: bytes of an element.
        sums: bytes of the sums of one vector.
        capacity: vectors of a tile's sums in registers.
        pairs: whether two kept weights are taken at a time (bfloat16).
    """

    width: int
    size: int
    sums: int
    capacity: int
    pairs: bool = False


@dataclass(frozen=True)
class Extent:
    """A pass, as far as it matters for cutting it.

    Attributes:
        channels: of the source.
        phases: of the source that are in use.
        halo: rows and columns that a tile's source has more than the tile.
        planes: target channels, times phases of the target.
        rows, cols: of a target's phase.
        density: share of weights that are kept, in steps of 1/64.
        dots: whether the pass sums up weight gradients.
    """

    channels: int
    phases: int
    halo: tuple[int, int]
    planes: int
    rows: int
    cols: int
    density: float
    taps: int
    dots: bool = False


@dataclass(frozen=True)
class Cut:
    """How a pass is cut; see `Geometry` in geometry.h."""

    strips: int
    coltiles: int
    flat: bool
    cb: int
    ob: int
    cost: float


@cache
def l1_bytes() -> int:
    """Size of the first data cache; 32 KB where the system does not say."""
    for index in range(4):
        folder = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}")
        try:
            kind = (folder / "type").read_text().strip()
            level = (folder / "level").read_text().strip()
            size = (folder / "size").read_text().strip()
        except OSError:
            continue
        if kind == "Data" and level == "1" and size.endswith("K"):
            return int(size[:-1]) * 1024
    return 32 * 1024


@lru_cache(maxsize=4096)
def cut(extent: Extent, lanes: int, machine: Machine) -> Cut:
    """The cheapest way for groups of `lanes` images."""
    exact = lanes % machine.width == 0
    best: Cut | None = None
    for flat in (False,) if exact or extent.dots else (False, True):
        for strips, rows in _parts(extent.rows):
            if rows > MAX_ROWS and not flat:
                continue
            for coltiles, cols in _parts(extent.cols) if not flat else ((1, extent.cols),):
                found = _best_block(extent, lanes, machine, (strips, rows, coltiles, cols), flat)
                if found is not None and (best is None or found.cost < best.cost):
                    best = found
    if best is None:
        raise ValueError(f"No tile fits {extent} with {lanes} lanes.")
    return best


def _parts(n: int) -> list[tuple[int, int]]:
    """Numbers of parts and the size of the largest, each size once."""
    found: dict[int, int] = {}
    for parts in range(1, n + 1):
        found.setdefault(-(-n // parts), parts)
    return [(parts, size) for size, parts in found.items()]


def _best_block(
    e: Extent, lanes: int, m: Machine, tile: tuple[int, int, int, int], flat: bool
) -> Cut | None:
    strips, rows, coltiles, cols = tile
    pitch = (cols + e.halo[1]) * lanes
    elements = ((rows - 1) * pitch if flat else 0) + cols * lanes
    vectors, runs = -(-elements // m.width), 1 if flat else rows
    count = runs * vectors
    if vectors > MAX_VECTORS or count > m.capacity:
        return None
    packed = e.phases * (rows + e.halo[0]) * pitch * m.size  # bytes per source channel
    useful = e.rows * e.cols * lanes / m.width / (strips * coltiles)
    fits = max(1, l1_bytes() // packed)
    exact = lanes % m.width == 0
    best: Cut | None = None
    for more in (1, 1.5, 2, 4, 1e6):
        cb = max(1, min(e.channels, int(fits * more)))
        blocks = -(-e.channels // cb)
        cb = -(-e.channels // blocks)
        spill = cb / fits
        rate = 1.0 if spill <= 1 else 1.05 if spill <= 1.5 else 1.15 if spill <= 2 else 1.5
        kept = e.density * e.taps * e.channels / blocks / (2 if m.pairs and not e.dots else 1)
        cost = _cycles(kept, count, blocks, rate, m, e.dots)
        packing = e.channels * packed / 64 * (4.0 if exact else 5.0)
        ob = max(16, min(e.planes, int(SUMS // (count * m.sums))))
        many = -(-e.planes // ob)
        cost = (cost * e.planes + packing * many) / (useful * e.planes)
        if not exact:
            cost *= 1.1
        if best is None or cost < best.cost:
            best = Cut(strips, coltiles, flat, cb, -(-e.planes // many), cost)
    return best


def _cycles(kept: float, count: int, blocks: int, rate: float, m: Machine, dots: bool) -> float:
    """Of one target in all blocks of the source; `kept` weights in each."""
    if dots:
        return blocks * (kept * (count * 0.6 * rate + 4.0) + 14 + count * 0.7)
    each = (1.25 if m.pairs else 0.66) * max(count, 3)
    waiting = 1.4 * (m.sums / (m.width * m.size)) if blocks > 1 else 0.0
    return blocks * (kept * (each * rate + 2.6) + 14 + count * waiting) + count * 0.7
