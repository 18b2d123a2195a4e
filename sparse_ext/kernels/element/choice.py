# SPDX-License-Identifier: MIT
"""Which layers the kernel pays for: measured on this machine, once per shape and density.

Every case (a layer's shape, its input's, the number of threads, training or not) has a density up
to which the kernel has won against torch's dense convolution and one from which it has lost. In
between it is measured, with random weights and inputs, and either bound moves. Bounds are kept in
the cache folder, so that the next run decides alike.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from solo.errors import SoloError
from sparse_ext.kernels.build import cache_folder
from sparse_ext.kernels.element import function, native
from sparse_ext.kernels.element.lanes import from_lanes, to_lanes
from sparse_ext.kernels.element.plan import Kept, Plan
from sparse_ext.kernels.plan import Window

log = logging.getLogger("sparse_ext")
ROUNDS = 3
WORTHWHILE = 20_000_000  # multiplications of a call; below, dense is as fast and nobody waits


@dataclass(frozen=True)
class Case:
    """What a choice depends on beside the density.

    Attributes:
        weight: shape of the layer's, (C_out, C_in, kh, kw).
        window: how it moves.
        x: shape of its input, (N, C_in, H, W).
        dtype: of its computation.
        threads: in use.
        training: whether a backward pass follows.
        dense_share: share of steps that want the gradient of pruned weights too.
        to_input: whether the backward pass reaches the input.
        in_lanes: whether what comes next wants its input in lanes, so that the dense convolution's
            output and its gradient have to be laid out anew.
    """

    weight: tuple[int, ...]
    window: Window
    x: tuple[int, ...]
    dtype: torch.dtype
    threads: int
    training: bool
    dense_share: float
    to_input: bool = True
    in_lanes: bool = False

    @property
    def key(self) -> str:
        """What the file calls this case."""
        w = self.window
        sides = [*self.weight, *w.stride, *w.padding, *w.dilation, *self.x]
        rest = (str(self.dtype), self.threads, self.training, round(self.dense_share, 4))
        return ",".join(str(v) for v in (*sides, *rest, self.to_input, self.in_lanes))


class Bounds:
    """Densities at which the kernel has won and lost, by case; kept in a file."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, list[float]] = {}
        try:
            if path is not None:
                self.known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            pass  # nothing measured yet, or by half: measured again

    def decided(self, key: str, density: float) -> bool | None:
        """Whether the kernel wins; None if that is not known."""
        won, lost = self.known.get(key, [-1.0, 2.0])
        return True if density <= won else False if density >= lost else None

    def learn(self, key: str, density: float, wins: bool) -> None:
        """Move a bound to `density`."""
        bounds = self.known.setdefault(key, [-1.0, 2.0])
        bounds[0 if wins else 1] = density
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            part.write_text(json.dumps(self.known), encoding="utf-8")
            os.replace(part, self.path)
        except OSError:
            self.path = None  # nowhere to keep them: this process remembers


_bounds: Bounds | None = None


def bounds() -> Bounds:
    """Those of this machine and this build of the kernel."""
    global _bounds
    if _bounds is None:
        name = native.variant()
        file = f"element-{name}-{native._key(name)}-{torch.__version__}.json"
        _bounds = Bounds(cache_folder() / file)
    return _bounds


def is_large(weight: Sequence[int], x: Sequence[int], window: Window) -> bool:
    """Whether a layer has so much to compute that it matters how."""
    size = window.output_size(x[2:], (weight[2], weight[3])) if len(weight) == 4 else x[2:]
    return math.prod(weight) * x[0] * math.prod(size) >= WORTHWHILE


def pays(case: Case, density: float) -> bool:
    """Whether the kernel is faster than torch's dense convolution."""
    if density >= 0.75 and not case.in_lanes:
        return False  # never seen to be
    known = bounds().decided(case.key, density)
    if known is None:
        known = measure(case, density)
        bounds().learn(case.key, density, known)
    return known


def measure(case: Case, density: float) -> bool:
    """Time both, in turns, on random numbers; neither torch's random state nor gradients move."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        weight = torch.rand(case.weight, generator=generator) - 0.5
        mask = torch.rand(case.weight, generator=generator) < density
        x = (torch.rand(case.x, generator=generator) - 0.5).to(case.dtype)
        size = case.window.output_size(case.x[2:], (case.weight[2], case.weight[3]))
        grad = torch.rand(case.x[0], case.weight[0], *size, generator=generator).to(case.dtype)
        dense = _dense_parts(case, x, weight, grad)
        sparse = _sparse_parts(case, x, weight * mask, mask, grad)
        times = _fastest([call for call, _ in (*dense, *sparse)])
    shares = [share for _, share in (*dense, *sparse)]
    costs = [t * s for t, s in zip(times, shares, strict=True)]
    return sum(costs[len(dense) :]) < sum(costs[: len(dense)])


_Parts = list[tuple[Callable[[], object], float]]


def _dense_parts(case: Case, x: Tensor, weight: Tensor, grad: Tensor) -> _Parts:
    last = torch.channels_last
    x, grad = (t.contiguous(memory_format=last) for t in (x, grad))
    weight = weight.to(case.dtype).contiguous(memory_format=last)
    w = case.window
    sides = list(w.stride), list(w.padding), list(w.dilation)

    def back(*wanted: bool) -> Callable[[], object]:
        rest = (*sides, False, [0, 0], 1, wanted)
        return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)

    parts: _Parts = [(lambda: F.conv2d(x, weight, None, *sides), 1.0)]
    if case.training:
        parts += [(back(False, True, False), 1.0)]
        parts += [(back(True, False, False), 1.0)] if case.to_input else []
    if case.in_lanes:
        laid = to_lanes(grad)
        parts += [(lambda: to_lanes(grad), 1.0)]
        parts += [(lambda: from_lanes(laid), 1.0)] if case.training else []
    return parts


def _sparse_parts(case: Case, x: Tensor, weight: Tensor, mask: Tensor, grad: Tensor) -> _Parts:
    plan = Plan(mask, case.window, weight.stride())
    x, grad, size = to_lanes(x), to_lanes(grad), (case.x[2], case.x[3])
    parts: _Parts = [(lambda: function.products(x, weight, plan), 1.0)]
    if case.training:
        share = case.dense_share
        to_input = lambda: function.input_gradient(grad, Kept(plan, weight), plan, size)  # noqa: E731
        kept = lambda: function.weight_gradient(x, grad, weight, plan)  # noqa: E731
        both = lambda: function.both_gradients(x, grad, weight, Kept(plan, weight), plan)  # noqa: E731
        full = lambda: function.dense_weight_gradient(x, grad, weight, plan)  # noqa: E731
        parts += [(both if case.to_input else kept, 1 - share)] if share < 1 else []
        if share > 0:
            parts += [(full, share)] + ([(to_input, share)] if case.to_input else [])
    return parts


def _fastest(calls: list[Callable[[], object]]) -> list[float]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(calls)
    for turn in range(ROUNDS + 1):
        for i, call in enumerate(calls):
            start = clock()
            call()
            if turn:
                best[i] = min(best[i], clock() - start)
    return best


# -- the library, built when the first layer wants it -------------------------------------------

_state = {"failed": False}


def ready() -> bool:
    """Whether the compiled kernel can be used; the first layer that asks has it built.

    One line says so, and one why it cannot be, after which layers compute densely. A layer waits
    for it instead of beginning densely: a run that is interrupted and resumed is then computed as
    one that never was.
    """
    if _state["failed"]:
        return False
    if native.library.cache_info().currsize:
        return True
    try:
        if native.variant() and not native.is_built():
            log.info(
                "The element-wise kernel is being compiled for this processor, once (half a "
                "minute on an idle machine)."
            )
        native.library()
    except (SoloError, OSError) as error:
        _state["failed"] = True
        log.warning("%s Layers compute densely.", error)
        return False
    return True


def wait() -> None:
    """Build and load the kernel now.

    Raises:
        KernelBuildError: it cannot be.
    """
    native.library()
    _state["failed"] = False
