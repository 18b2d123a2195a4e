# SPDX-License-Identifier: MIT
"""What units cost in the images of a run: shapes, and for `sparse.budget=latency:...` seconds.

Seconds of a network that does not exist yet cannot be foretold, so a budget in seconds is turned
into one in multiply-accumulates once, before the first step: the encoder is made smaller on a copy,
by magnitude, until it is as fast as asked for. Masks are then chosen by the run's own score.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from solo.errors import ConfigError
from solo.utils import ranks
from sparse_ext.compat import unwrapped
from sparse_ext.config.scorer_names import scorer_named
from sparse_ext.masks.channels.cutting import remove_
from sparse_ext.pruning.log import log
from sparse_ext.pruning.priced_units import PricedUnits
from sparse_ext.pruning.pruner import Pruner

TRIES = 7  # encoders that are timed
LEAST, MOST = 5, 60  # passes of which the fastest counts
ENOUGH = 0.5  # seconds that each network has been timed for
WARM_UP = 2


def measure(pruner: Pruner, shape: tuple[int, ...] | None) -> None:
    """Find what units cost in images of the run; twice changes nothing.

    Args:
        pruner: of a run with `sparse.budget`; any other is left alone.
        shape: (C, H, W) of an image; None if batches hold none.

    Raises:
        ConfigError: no encoder is fast enough, or costs little enough.
    """
    if pruner.measured:
        return
    pruner.measured = True
    pruner.units.count_costs(shape)
    if pruner.config.spending.kind == "latency" and not pruner.timed:
        pruner.timed = True
        gone = ranks.share_value(_macs_that_go(pruner, shape))
        if math.isnan(gone):
            raise ConfigError(
                f"sparse.budget={pruner.config.budget}: no smaller encoder that can be made of "
                f"this one is that fast here. Raise the budget."
            )
        more, constant = gone - pruner.config.final, pruner.begins == pruner.finals
        ends = zip(pruner.begins, pruner.finals, strict=True)
        pruner.finals = [max(last + more, 0.0 if constant else first) for first, last in ends]
        if constant:
            pruner.begins, pruner.aims = list(pruner.finals), list(pruner.finals)
    for sparsity in pruner.finals:
        pruner.units.check(sparsity)


def _macs_that_go(pruner: Pruner, shape: tuple[int, ...] | None) -> float:
    """Share of the multiply-accumulates without which the encoder keeps its budget of seconds."""
    units, wanted = pruner.units, pruner.config.spending.share
    if not isinstance(units, PricedUnits):
        raise ConfigError("sparse.budget needs channels as units: set sparse.coupled=true.")
    side = units.channels.input_shape[1:] if shape is None else shape
    net, score = unwrapped(pruner.online.module), scorer_named("magnitude")
    full, low, high, best = copy.deepcopy(net), 0.0, 1.0, 0.0
    for _ in range(TRIES):
        share = (low + high) / 2
        try:
            kept = pruner.best(pruner.online, share, scorer=score)
        except ConfigError:  # so much cannot go
            high = share
            continue
        small = copy.deepcopy(net)
        remove_(units.channels, [small], units.going(kept))
        dense, slim = seconds([full, small], side)
        if slim <= wanted * dense:
            high, best = share, slim / dense
        else:
            low = share
    if not best:
        return math.nan  # which all processes are told before one of them ends
    log.info(
        "sparse.budget=%s: the encoder takes %.3f of the time per image without %.3f of its "
        "multiply-accumulates (measured on %s).",
        *(pruner.config.budget, best, high, _device(net)),
    )
    return high


@torch.no_grad()
def seconds(nets: Sequence[nn.Module], shape: Sequence[int]) -> list[float]:
    """Seconds that each network takes for one image in evaluation, the best of some passes.

    Args:
        nets: timed in turns; their modes stay as they are.
        shape: (C, H, W) of the image.
    """
    modes = [{m: m.training for m in net.modules()} for net in nets]
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).to(_device(nets[0]))
    best, spent = [float("inf") for _ in nets], 0.0
    for net in nets:
        net.eval()
        for _ in range(WARM_UP):
            net(x)
    for turn in range(MOST):
        for i, net in enumerate(nets):
            taken = _time(net, x)
            best[i], spent = min(best[i], taken), spent + taken
        if turn >= LEAST and spent > ENOUGH * len(nets):
            break
    for before in modes:
        for module, mode in before.items():
            module.training = mode
    return best


def _time(net: nn.Module, x: torch.Tensor) -> float:
    """Seconds of the processor where one thread computes, and otherwise of the wall."""
    alone = x.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    _wait(x.device)
    start = clock()
    net(x)
    _wait(x.device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device
