# SPDX-License-Identifier: MIT
"""What sparse training costs per step, beside the step itself: ResNet-18, CPU, batch 64 at 32x32.

    python benchmarks/mask_overhead.py [--batch 64] [--steps 5] [--threads 1] [--method simclr]

The step is forward, backward and SGD with momentum on two views, as SimCLR does it (for
`--method byol` with the momentum encoder's pass and update). Mask work is what SyncCP adds to every
step (score update, gradient mask, weight and state mask, for BYOL the average of latents instead of
weights) plus one mask update, timed by itself and divided by the update period of the CIFAR runs,
1000 steps. Each part is timed alone, many times, and its median counts: the difference of two whole
steps would drown in noise. The goal is 3%.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from solo.losses.byol import byol_loss_func
from solo.losses.simclr import simclr_loss_func
from solo.utils.momentum import MomentumUpdater, initialize_momentum_params
from sparse_ext.callback import all_finite
from sparse_ext.config import build
from sparse_ext.ema import MaskedEMA
from sparse_ext.encoder import Encoder, patch
from sparse_ext.pruner import Clock, build_pruner

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

    def __init__(self, method: str, batch: int) -> None:
        from omegaconf import OmegaConf

        from solo.backbones import build_encoder

        cfg = {"method": method, "backbone": {"name": "resnet18"}, "data": {"dataset": "cifar10"}}
        config = build({"name": "synccp", "csi": "off", "update_period": PERIOD})
        self.backbone = patch(build_encoder(OmegaConf.create(cfg)), config)
        self.head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 128))
        self.teacher = copy.deepcopy(self.backbone) if method == "byol" else None
        encoders = [Encoder(net) for net in (self.backbone, self.teacher) if net is not None]
        for encoder in encoders:
            encoder.add_buffer("shadow")
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
        self.pruner.observe(all_finite(grads))
        self.pruner.online.mask_gradients()
        self.pruner.online.project(self.optimizer)

    def update(self) -> None:
        """One change of the masks, with drop and regrow at its most (p = 0.5)."""
        self.pruner.t = 0
        self.pruner.after_step(self.optimizer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="training steps to time")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--method", choices=("simclr", "byol"), default="simclr")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    step = Step(args.method, args.batch)
    dense = seconds(step.train, args.steps) + seconds(lambda: step.average(False), 4 * args.steps)
    masking = seconds(step.per_step, 4 * args.steps)
    latents = seconds(lambda: step.average(True), 4 * args.steps)
    latents -= seconds(lambda: step.average(False), 4 * args.steps)
    update = seconds(step.update, 3)
    extra = masking + latents + update / PERIOD
    print(f"machine: {platform.machine()}, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, ResNet-18, {args.method}, batch {args.batch} at 32x32, CPU")
    print(f"training step without masks   {dense * 1e3:9.1f} ms")
    print(f"mask work of every step       {(masking + latents) * 1e3:9.1f} ms")
    print(f"one mask update               {update * 1e3:9.1f} ms, every {PERIOD} steps")
    print(f"mask work, averaged           {extra * 1e3:9.1f} ms")
    print(f"ratio                         {extra / dense:9.2%}  (goal: at most {GOAL:.0%})")


if __name__ == "__main__":
    main()
