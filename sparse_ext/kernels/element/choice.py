# SPDX-License-Identifier: MIT
"""Which layers the kernel pays for: measured on this machine, once per shape and density.

Every case (a layer's shape, its input's, the number of threads, training or not) has a density up
to which the kernel has won against torch's dense convolution and one from which it has lost. In
between it is measured, with random weights and inputs, and either bound moves. Bounds are kept in
the cache folder, so that the next run decides alike.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from solo.errors import SoloError
from solo.monitoring.console import waiting
from sparse_ext.kernels.build import cache_folder
from sparse_ext.kernels.element import function, native
from sparse_ext.kernels.element.bounds import Bounds
from sparse_ext.kernels.element.lanes import from_lanes, to_lanes
from sparse_ext.kernels.element.plan import Kept, Plan
from sparse_ext.kernels.plan import Window

log = logging.getLogger("sparse_ext")
ROUNDS = 3
MARGIN = 0.9  # of the dense time: changes of layout between layers and noise are to be paid, too
SPARSEST = 1 / 64  # density that stands for all below
DENSEST = 0.75  # density from which the kernel has never been seen to win
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
        frozen: whether the kernel has read the weights once and for all.
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
    frozen: bool = False

    @property
    def key(self) -> str:
        """What the file calls this case."""
        w = self.window
        sides = [*self.weight, *w.stride, *w.padding, *w.dilation, *self.x]
        rest = (str(self.dtype), self.threads, self.training, round(self.dense_share, 4))
        return ",".join(str(v) for v in (*sides, *rest, self.to_input, self.in_lanes, self.frozen))


_bounds: Bounds | None = None


@cache
def _build_name() -> str:
    """What bounds are about: this build of the kernel and torch's convolutions."""
    name = native.variant()
    return f"choice-{name}-{native._key(name)}-{torch.__version__}"


def bounds() -> Bounds:
    """Those of this machine and this build of the kernel."""
    global _bounds
    if _bounds is None:
        _bounds = Bounds(cache_folder() / f"{_build_name()}.json")
    return _bounds


def decisions() -> dict[str, dict[str, list[float]]]:
    """What this process has decided, for a checkpoint; by build of the kernel."""
    if not native.variant():
        return {}
    known = bounds().known
    asked = {key: list(known[key]) for key in sorted(bounds().asked) if key in known}
    return {_build_name(): asked} if asked else {}


def repeat(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Decide as a run did whose `decisions` these are, if this is the same build of the kernel."""
    if native.variant() and found.get(_build_name()):
        bounds().adopt(found[_build_name()])


def is_large(weight: Sequence[int], x: Sequence[int], window: Window) -> bool:
    """Whether a layer has so much to compute that it matters how."""
    size = window.output_size(x[2:], (weight[2], weight[3])) if len(weight) == 4 else x[2:]
    return math.prod(weight) * x[0] * math.prod(size) >= WORTHWHILE


def pays(case: Case, density: float) -> bool:
    """Whether the kernel is faster than torch's dense convolution."""
    if density >= DENSEST and not case.in_lanes:
        return False
    density = coarse(density)
    return bounds().decide(case.key, density, lambda: measure(case, density))


def coarse(density: float) -> float:
    """The density from above, four to a factor of two, so that a ramp asks for few measurements.

    >>> [round(coarse(density), 3) for density in (0.7, 0.5, 0.45, 0.1)]
    [0.75, 0.53, 0.53, 0.111]
    """
    quarters = math.ceil(4 * math.log2(max(density, SPARSEST) / DENSEST))
    return min(1.0, DENSEST * 2 ** (quarters / 4))


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
    return sum(costs[len(dense) :]) < MARGIN * sum(costs[: len(dense)])


_Parts = list[tuple[Callable[[], object], float]]


def _dense_parts(case: Case, x: Tensor, weight: Tensor, grad: Tensor) -> _Parts:
    last = torch.channels_last
    x, grad = (t.contiguous(memory_format=last) for t in (x, grad))
    parameter = weight.contiguous(memory_format=last)
    weight = parameter.to(case.dtype)
    w = case.window
    sides = list(w.stride), list(w.padding), list(w.dilation)

    def back(*wanted: bool) -> Callable[[], object]:
        rest = (*sides, False, [0, 0], 1, wanted)
        return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)

    # autocast rounds the weight in every forward pass
    parts: _Parts = [(lambda: F.conv2d(x, parameter.to(case.dtype), None, *sides), 1.0)]
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
    key = True if case.frozen else None
    parts: _Parts = [(lambda: function.products(x, weight, plan, key=key), 1.0)]
    if case.training:
        share = case.dense_share
        to_input = lambda: function.input_gradient(grad, weight, plan, size)  # noqa: E731
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


# -- the library, built beside training ----------------------------------------------------------


_state = {"failed": False}
_builder: threading.Thread | None = None


def ready(wanted: Callable[[], bool]) -> bool:
    """Whether the compiled kernel can be used; one line says why not, and layers are dense then.

    Where it is not built yet, the first layer that is large enough begins to build it, beside
    training, and the first one that is sparse enough waits for the end of that: at which step the
    kernel is switched on never depends on how fast a compiler is, so that a run that is
    interrupted and resumed is computed as one that never was.

    Args:
        wanted: whether the layer that asks would use it; asked while it is not loaded.
    """
    if _state["failed"]:
        return False
    if native.library.cache_info().currsize:
        return True
    if not wanted():
        begin()
        return False
    try:
        _load()
    except (SoloError, OSError) as error:
        _state["failed"] = True
        log.warning("%s Layers compute densely.", error)
        return False
    return True


def begin() -> None:
    """Build the kernel in a thread, with a line that says so, unless that has been done."""
    global _builder
    if _builder is not None or not native.variant() or native.is_built():
        return
    log.info(
        "The element-wise kernel is being compiled for this processor, once, while training goes "
        "on (half a minute on an idle machine)."
    )
    _builder = threading.Thread(target=_build, daemon=True)
    _builder.start()
    atexit.register(_stop, _builder)


def _build() -> None:
    with suppress(SoloError, OSError):  # the first layer that wants the kernel says what is wrong
        native.located(native.variant())


def _stop(builder: threading.Thread) -> None:
    """The program ends before the compiler: nothing of it is left behind."""
    native.stop_compilers()
    builder.join(5.0)


def _load() -> None:
    global _builder
    begin()
    builder, _builder = _builder, None
    with waiting("compiling the element-wise kernel"):
        if builder is not None:
            builder.join()
        native.library()


def wait() -> None:
    """Build and load the kernel now.

    Raises:
        KernelBuildError: it cannot be.
    """
    if not native.library.cache_info().currsize:
        _load()
    _state["failed"] = False
