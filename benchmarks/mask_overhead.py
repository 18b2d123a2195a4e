# SPDX-License-Identifier: MIT
"""What sparse training costs per step, beside the step itself: ResNets, CPU, images of 32x32.

    python benchmarks/mask_overhead.py [--batch 64] [--steps 3] [--threads 1]
        [--backbone resnet18 resnet50] [--sparse synccp gmp ...] [--granularity element 2:4 ...]

Every combination is a line; without options that is every method in every granularity that it
knows, on ResNet-18 and ResNet-50. The step is forward, backward and SGD with momentum on two views,
as SimCLR does it; with `--method byol` and for methods that need a momentum encoder, with its pass
and its update too.

Mask work is what the method adds to every step: masked gradients, weights and states, SyncCP's
score, SR-STE's masks, the products in masked forward passes and backwards, the latents of the
momentum encoder, the cost meter. To it comes a change of masks, divided by the steps between two
changes, which is the method's own default in the CIFAR runs (1000 epochs of 195 steps). Each part
is timed alone, many times, and its median counts: the difference of two whole steps would drown in
noise. Times are the CPU's for this process, so that other programs on the machine do not count. The
goal is 3%, and 1% where masks change every 1000 steps or more rarely.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import nn

from solo.errors import ConfigError
from solo.losses.byol import byol_loss_func
from solo.losses.simclr import simclr_loss_func
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params
from sparse_ext.config.sections import METHODS, SparseConfig, build
from sparse_ext.masks.encoder import Encoder, masked
from sparse_ext.masks.living_weights import Functional
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.constant_sparsity import EpochMasks
from sparse_ext.pruning.methods.mcp import MCP
from sparse_ext.pruning.methods.sr_ste import SRSTE
from sparse_ext.pruning.registry import build_pruner, method_class
from sparse_ext.schedules import Clock
from sparse_ext.training.callback import all_finite
from sparse_ext.training.cost_meter import CostMeter
from sparse_ext.training.momentum_encoder import MaskedEMA

CLOCK = Clock(steps=195_000, epochs=1000, steps_per_epoch=195)
GOAL, GOAL_OF_RARE, RARE = 0.03, 0.01, 1000
PAIR_ONLY = ("mcp",)
GRANULARITIES = ("element", "2:4", "block8", "filter")


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


class Module(nn.Module):
    """An encoder with a head and, for BYOL, its momentum copy."""

    def __init__(self, backbone: nn.Module, pair: bool) -> None:
        super().__init__()
        features = backbone(torch.zeros(2, 3, 32, 32)).shape[1]
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 128))
        if pair:
            self.momentum_backbone = copy.deepcopy(backbone).requires_grad_(False)


class Step:
    """One dense training step of SimCLR or BYOL on random images, and the mask work around it."""

    def __init__(self, pair: bool, batch: int, backbone: str, config: SparseConfig) -> None:
        from omegaconf import OmegaConf

        from solo.backbones import build_encoder

        cfg = {"method": "simclr", "backbone": {"name": backbone}, "data": {"dataset": "cifar10"}}
        net = build_encoder(OmegaConf.create(cfg))
        self.views = [torch.randn(batch, 3, 32, 32) for _ in range(2)]
        self.dense = Module(net, pair)
        self.module = Module(patch(copy.deepcopy(net), config), pair)
        self.updater = MomentumUpdater(0.99, 1.0)
        if pair:
            initialize_momentum_params(self.dense.backbone, self.dense.momentum_backbone)
        self.optimizers = [
            torch.optim.SGD(m.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
            for m in (self.dense, self.module)
        ]
        self.pair = pair
        self._prepare(config)

    def _prepare(self, config: SparseConfig) -> None:
        """What the callback does before training."""
        kind, nets = method_class(config), [self.module.backbone]
        if self.pair:
            nets.append(self.module.momentum_backbone)  # type: ignore[arg-type]
        encoders = kind.prepare(config, self.module, [Encoder(net) for net in nets])
        self.needs = kind.needs(config, not self.pair)
        if self.needs.latents:
            for encoder in encoders:
                encoder.add_buffer("shadow")
        if self.needs.mean_gradient:
            encoders[0].add_buffer("score")
        self.pruner = build_pruner(config, encoders[0], [*encoders, None][1], CLOCK)
        if self.pruner.needs_batch:
            self.pruner.gradient = {n: torch.rand_like(w) for n, w in encoders[0].weights.items()}
        self.pruner.start()
        self.pruner.begin_batch(0)
        self.meter = CostMeter()
        self.meter.look(nets, self.views[0][:2])
        for parameter in self.module.parameters():  # one plain step fills gradients and state
            parameter.grad = torch.randn_like(parameter)
        self.optimizers[1].step()

    def train(self) -> None:
        """Forward, backward and optimizer step of a dense run."""
        net = self.dense
        z = [net.head(net.backbone(view)) for view in self.views]
        if self.pair:
            with torch.no_grad():
                targets = [net.head(net.momentum_backbone(view)) for view in self.views]  # type: ignore
            loss = byol_loss_func(z[0], targets[1]) + byol_loss_func(z[1], targets[0])
        else:
            index = torch.arange(len(z[0])).repeat(2)
            loss = simclr_loss_func(torch.cat(z), index, 0.2)
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()

    def average(self, masked: bool) -> None:
        """The momentum encoder's update."""
        if self.pair:
            latent = masked and self.needs.stored_zeros
            updater = MaskedEMA(self.updater, "latent") if latent else self.updater
            module = self.module if masked else self.dense
            updater.update(module.backbone, module.momentum_backbone)

    def masking(self) -> None:
        """What the callback does at every optimizer step, without a change of masks."""
        self.pruner.t = 1
        grads = [p.grad for g in self.optimizers[1].param_groups for p in g["params"]]
        if self.pruner.wants_gradients():
            self.pruner.observe(all_finite(grads))
        self.pruner.adjust_gradients(self.optimizers[1])
        self.pruner.online.project(self.optimizers[1])
        self.meter.step()
        self.pruner.after_step(self.optimizers[1])
        self.pruner.begin_batch(0)

    def products(self) -> None:
        """Masks in the forward passes of living weights, and in their backward passes."""
        layers = self.pruner.online.layers.values()
        for layer in (layer for layer in layers if isinstance(layer, Functional)):
            for seen in (layer.branches.first, layer.branches.others):
                if seen:
                    masked(layer.weight.detach(), layer.mask)
                if seen and not layer.straight:
                    masked(layer.weight.grad, layer.mask)  # type: ignore[arg-type]

    def change(self) -> None:
        """One change of the masks, with drop and regrow at its most."""
        pruner, optimizer = self.pruner, self.optimizers[1]
        if isinstance(pruner, MCP):
            pruner.end_epoch(1)
        elif isinstance(pruner, EpochMasks):
            pruner.masked_epoch = 0
            pruner.begin_batch(1, optimizer)
        else:
            pruner.t = period_of(pruner)
            if pruner.wants_gradients() and not self.needs.mean_gradient:
                pruner.observe(torch.tensor(True))
            pruner.after_step(optimizer)


def period_of(pruner) -> int:
    """Optimizer steps between two changes of masks in the CIFAR runs; 0 = they never change.

    Masks that change in every step are part of the mask work of every step.
    """
    if isinstance(pruner, SRSTE):
        return 1
    if isinstance(pruner, (EpochMasks, MCP)):
        return CLOCK.steps_per_epoch
    for pruner.t in range(1, RARE + 1):
        if pruner.due():
            return pruner.t
    return 0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="training steps to time")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--method", choices=("simclr", "byol"), default="simclr")
    parser.add_argument("--backbone", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--sparse", nargs="+", default=list(METHODS), help="names of methods")
    parser.add_argument("--granularity", nargs="+", default=list(GRANULARITIES))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"machine: {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, {args.method}, batch {args.batch} at 32x32, CPU; in ms")
    heads = ("step", "masking", "change", "period", "averaged")
    print(f"{'':36}" + "".join(f"{head:>10}" for head in heads) + f"{'ratio':>8}")
    dense: dict[tuple[str, bool], float] = {}
    for backbone, name, granularity in product(args.backbone, args.sparse, args.granularity):
        try:
            config = build(_section(name, granularity))
            pair = args.method == "byol" or name in PAIR_ONLY
            step = Step(pair, args.batch, backbone, config)
        except ConfigError:
            continue  # the method does not do that
        if (backbone, pair) not in dense:
            dense[backbone, pair] = seconds(step.train, args.steps)
        _line(f"{backbone:10}{name:13}{granularity:13}", measure(step, dense[backbone, pair]))


def _section(name: str, granularity: str) -> dict:
    """A method with its own defaults; SyncCP in its ramp."""
    own = {"csi": "off"} if name == "synccp" else {}
    own |= {"final": 0.6} if name.startswith("rigl") and granularity == "2:4" else {}
    return {"name": name, "granularity": granularity, **own}


def measure(step: Step, train: float) -> tuple[float, float, float, int, float]:
    """Seconds of a step, of the mask work in it, of a change; the period; work per step."""
    plain = seconds(lambda: step.average(False), 9)
    masking = seconds(step.masking, 9) + seconds(step.products, 5)
    masking += seconds(lambda: step.average(True), 9) - plain
    period = period_of(step.pruner)
    change = seconds(step.change, 3) if period > 1 else 0.0
    return train + plain, masking, change, period, masking + change / max(1, period)


def _line(title: str, figures: tuple[float, float, float, int, float]) -> None:
    step, masking, change, period, averaged = figures
    often = 0 < period < RARE
    late = averaged / step > (GOAL if often else GOAL_OF_RARE)
    times = "".join(f"{1e3 * value:10.1f}" for value in (step, masking, change))
    ratio = f"{averaged / step:8.2%}" + (" above the goal" if late else "")
    print(f"{title}{times}{period or '-':>10}{1e3 * averaged:10.1f}{ratio}", flush=True)


if __name__ == "__main__":
    main()
