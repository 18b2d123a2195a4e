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
class Costs:
    """Cycles, per vector of a tile where nothing else is said; fitted to timings of ResNet-18.

    Attributes:
        product: of a kept weight.
        weight: of a kept weight in a tile.
        run: of a kept weight in a row of a tile.
        segment: of a target in a block of the source, and a tile.
        sums: that wait between blocks, or gradients that are read in each.
        end: of finished sums.
        spill: added to `product`, for each L1 cache that a block takes beyond a first `roomy` part.
        packed: of the source.
        packed_row: in a row of the source.
        strided: `packed` times this where the source is taken in strides.
        full: of `sums`, for each MB of them beyond `fits`.
    """

    product: float
    weight: float
    run: float
    segment: float
    sums: float
    end: float
    spill: float
    roomy: float
    packed: float
    packed_row: float
    strided: float
    full: float
    fits: float


_FLOAT = Costs(0.42, 0.0, 0.0, 29.0, 1.6, 51.0, 0.58, 0.46, 7.7, 3.6, 2.2, 2.0, 0.04)
_HALF = Costs(1.2, 6.0, 0.42, 0.46, 4.1, 37.0, 0.21, 0.0, 3.8, 25.0, 2.6, 2.3, 0.0)
_FLOAT_FEW = Costs(0.5, 0.0, 0.28, 11.0, 1.4, 64.0, 0.36, 0.78, 5.7, 14.7, 3.4, 0.92, 0.13)
_HALF_FEW = Costs(0.95, 11.0, 0.59, 4.5, 4.2, 36.0, 0.33, 0.08, 2.7, 8.0, 1.54, 0.49, 0.2)
_FLOAT_DOTS = Costs(0.36, 1.8, 0.28, 14.0, 0.64, 64.0, 0.36, 0.78, 5.7, 14.7, 3.4, 0.92, 0.13)
_FLOAT_BOTH = Costs(0.78, 6.8, 0.31, 7.0, 2.1, 236.0, 0.18, 0.81, 5.2, 8.8, 0.18, 8.7, 0.05)
_HALF_BOTH = Costs(1.16, 1.6, 0.42, 3.9, 12.4, 187.0, 0.37, 0.0, 5.3, 21.1, 4.6, 0.06, 1.0)
_HALF_DOTS = Costs(0.43, 3.9, 0.59, 8.4, 1.1, 21.0, 0.33, 0.08, 2.7, 8.0, 1.54, 0.49, 0.2)


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
        dots: whether the pass sums up weight gradients only.
        both: whether it does so beside the input gradient.
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
    both: bool = False


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
    c = _costs(m, e, exact)
    by_row = e.phases * (rows + e.halo[0]) * c.packed_row
    packing = by_row + packed / 64 * c.packed * (1 if e.phases == 1 else c.strided)
    best: Cut | None = None
    for more in (0.5, 0.7, 0.85, 1, 1.5, 2, 4, 1e6):
        cb = max(1, min(e.channels, int(fits * more)))
        blocks = -(-e.channels // cb)
        cb = -(-e.channels // blocks)
        ob = max(16, min(e.planes, int(SUMS // (count * m.sums))))
        many = -(-e.planes // ob)
        ob = -(-e.planes // many)
        kept = e.density * e.taps * e.channels / blocks / (2 if m.pairs and not e.dots else 1)
        rate = 1 + c.spill * max(0.0, cb * packed / l1_bytes() - c.roomy)
        cost = blocks * (kept * (c.product * max(count, 3) * rate + c.weight + c.run * runs))
        cost += blocks * c.segment + count * c.end
        if blocks > 1 or e.dots:
            waiting = count * (e.planes * 64 if e.dots else ob * m.sums) / 2**20
            cost += blocks * count * (c.sums + c.full * max(0.0, waiting - c.fits))
        cost = (cost * e.planes + e.channels * packing * many) / (useful * e.planes)
        if not exact:
            cost *= 1.1
        if best is None or cost < best.cost:
            best = Cut(strips, coltiles, flat, cb, ob, cost)
    return best


def _costs(m: Machine, e: Extent, exact: bool) -> Costs:
    """For `exact` groups, whose images fill vectors, or for fewer images."""
    if e.both:
        return _HALF_BOTH if m.pairs else _FLOAT_BOTH
    if e.dots:
        return _HALF_DOTS if m.pairs else _FLOAT_DOTS
    if not exact:
        return _HALF_FEW if m.pairs else _FLOAT_FEW
    return _HALF if m.pairs else _FLOAT
