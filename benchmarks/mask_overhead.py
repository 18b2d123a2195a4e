# SPDX-License-Identifier: MIT
"""What sparse training costs per step, beside the step itself: ResNets, CPU, images of 32x32.

    python benchmarks/mask_overhead.py [--batch 64] [--steps 5] [--threads 1] [--method simclr]
        [--backbone resnet18 resnet50] [--sparse synccp gmp] [--granularity element 2:4 block8]

Every combination is a line. The step is forward, backward and SGD with momentum on two views, as
SimCLR does it (for `--method byol` with the momentum encoder's pass and update). Mask work is what
the sparse method adds to every step (SyncCP's score update, gradient mask, weight and state mask,
for BYOL the average of latents instead of weights) plus one mask update, timed by itself and
divided by the update period of the CIFAR runs, 1000 steps. Each part is timed alone, many times,
and its median counts: the difference of two whole steps would drown in noise. The goal is 3%.
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

from solo.losses.byol import byol_loss_func
from solo.losses.simclr import simclr_loss_func
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params
from sparse_ext.callback import all_finite
from sparse_ext.clock import Clock
from sparse_ext.config import build
from sparse_ext.ema import MaskedEMA
from sparse_ext.encoder import Encoder, patch
from sparse_ext.registry import build_pruner, method_class

PERIOD = 1000  # optimizer steps between mask updates in the CIFAR runs
GOAL = 0.03


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median duration of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Step:
    """One training step of SimCLR or BYOL on random images, and the mask work around it."""

    def __init__(self, method: str, batch: int, backbone: str, sparse: dict) -> None:
        from omegaconf import OmegaConf

        from solo.backbones import build_encoder

        cfg = {"method": method, "backbone": {"name": backbone}, "data": {"dataset": "cifar10"}}
        config = build({**sparse, "update_period": PERIOD})
        self.backbone = patch(build_encoder(OmegaConf.create(cfg)), config)
        features = self.backbone(torch.zeros(2, 3, 32, 32)).shape[1]
        self.head = nn.Sequential(nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, 128))
        self.teacher = copy.deepcopy(self.backbone) if method == "byol" else None
        encoders = [Encoder(net) for net in (self.backbone, self.teacher) if net is not None]
        kind = method_class(config)
        if kind.keeps_latents(config, self.teacher is None):
            for encoder in encoders:
                encoder.add_buffer("shadow")
        if kind.scores_gradients:
            encoders[0].add_buffer("score")
        clock = Clock(steps=195 * PERIOD, epochs=1000, steps_per_epoch=195)
        self.pruner = build_pruner(config, encoders[0], [*encoders, None][1], clock)
        self.pruner.start()
        self.updater = MomentumUpdater(0.99, 1.0)
        if self.teacher is not None:
            initialize_momentum_params(self.backbone, self.teacher)
        params = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=1e-4)
        self.views = [torch.randn(batch, 3, 32, 32) for _ in range(2)]

    def train(self) -> None:
        """Forward, backward and optimizer step of a dense run."""
        z = [self.head(self.backbone(view)) for view in self.views]
        if self.teacher is None:
            index = torch.arange(len(z[0])).repeat(2)
            loss = simclr_loss_func(torch.cat(z), index, 0.2)
        else:
            with torch.no_grad():
                targets = [self.head(self.teacher(view)) for view in self.views]
            loss = byol_loss_func(z[0], targets[1]) + byol_loss_func(z[1], targets[0])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def average(self, masked: bool) -> None:
        """The momentum encoder's update."""
        if self.teacher is not None:
            updater = MaskedEMA(self.updater, "latent") if masked else self.updater
            updater.update(self.backbone, self.teacher)

    def per_step(self) -> None:
        """What the callback does at every optimizer step."""
        grads = [p.grad for g in self.optimizer.param_groups for p in g["params"]]
        if self.pruner.wants_gradients():
            self.pruner.observe(all_finite(grads))
        self.pruner.online.mask_gradients()
        self.pruner.online.project(self.optimizer)

    def update(self) -> None:
        """One change of the masks, with drop and regrow at its most (p = 0.5)."""
        self.pruner.t = 0
        if self.pruner.wants_gradients() and not self.pruner.scores_gradients:
            self.pruner.observe(torch.tensor(True))
        self.pruner.after_step(self.optimizer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="training steps to time")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--method", choices=("simclr", "byol"), default="simclr")
    parser.add_argument("--backbone", nargs="+", default=["resnet18"])
    parser.add_argument("--sparse", nargs="+", default=["synccp"], help="names of methods")
    parser.add_argument("--granularity", nargs="+", default=["element", "2:4", "block8"])
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"machine: {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, {args.method}, batch {args.batch} at 32x32, CPU; in ms")
    print(f"averaged over {PERIOD} steps between two updates; goal: at most {GOAL:.0%} of a step")
    print(f"{'':36}{'step':>10}{'masking':>10}{'update':>10}{'averaged':>10}{'ratio':>8}")
    for backbone, name, granularity in product(args.backbone, args.sparse, args.granularity):
        sparse = {"name": name, "granularity": granularity}
        sparse |= {"csi": "off"} if name == "synccp" else {}
        figures = measure(args.method, args.batch, backbone, sparse, args.steps)
        line = "".join(f"{1e3 * value:10.1f}" for value in figures)
        print(f"{backbone:10}{name:13}{granularity:13}{line}{figures[3] / figures[0]:8.2%}")


def measure(
    method: str, batch: int, backbone: str, sparse: dict, steps: int
) -> tuple[float, float, float, float]:
    """Seconds of a step, of the mask work in it, of one mask update, of both averaged."""
    torch.manual_seed(0)
    step = Step(method, batch, backbone, sparse)
    plain = seconds(lambda: step.average(False), 4 * steps)
    dense = seconds(step.train, steps) + plain
    masking = seconds(step.per_step, 4 * steps)
    masking += seconds(lambda: step.average(True), 4 * steps) - plain
    update = seconds(step.update, 3)
    return dense, masking, update, masking + update / PERIOD


if __name__ == "__main__":
    main()
