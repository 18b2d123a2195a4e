# SPDX-License-Identifier: MIT
"""Seconds of a training step and of inference on a GPU: dense, masked, slim, and 2:4.

    python benchmarks/gpu/timings.py [--out benchmarks/results/gpu_timings.json]

bfloat16, channels_last, random weights, the same images for all routes of a network, in turns; the
best of --rounds rounds of --steps calls each. Masked networks compute their zeros: they are here to
show what masks cost, single weights or 8x8 blocks alike, for which there is no GPU kernel. Slim
networks have lost whole channels; 2:4 is torch's semi-structured form of linear layers, inference
only. The dense network of the same run is what each is compared with.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results import ROOT, Results
from routes import MULTIPLE, Unreachable, pruned
from torch import Tensor, nn

from sparse_ext.export import semi_structured
from sparse_ext.masks.channels.removal import shrink_


class Network(NamedTuple):
    """An encoder, the size of its images, its batch, and whether channels can be removed."""

    backbone: dict[str, Any]
    dataset: str
    side: int
    batch: int
    slims: bool


NETWORKS = {
    "resnet18 32": Network({"name": "resnet18"}, "cifar10", 32, 1024, True),
    "resnet50 224": Network({"name": "resnet50"}, "imagenet100", 224, 128, True),
    "vit_small 224": Network({"name": "vit_small"}, "imagenet100", 224, 256, False),
}
TINY = {
    "resnet18 32": Network({"name": "resnet18", "kwargs": {"width": 16}}, "cifar10", 32, 8, True),
    "vit_tiny 32": Network(
        {"name": "vit_tiny", "kwargs": {"img_size": 32, "patch_size": 8, "depth": 2}},
        *("cifar10", 32, 8, False),
    ),
}
SPARSITIES = (0.8, 0.9)


def encoder(network: Network) -> nn.Module:
    """A fresh one, on the CPU."""
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder

    torch.manual_seed(0)
    cfg = {"method": "simclr", "backbone": network.backbone, "data": {"dataset": network.dataset}}
    return build_encoder(OmegaConf.create(cfg))


def routes(network: Network) -> dict[str, nn.Module]:
    """Ways of making use of zeros, by name, dense first."""
    net = encoder(network)
    found = {"dense": net}
    for sparsity in SPARSITIES:
        share = f"{sparsity:.0%}"
        found[f"masked {share}"] = pruned(net, sparsity, "element", "uniform")
        found[f"8x8 blocks, masked {share}"] = pruned(net, sparsity, "block8", "uniform")
        if network.slims:
            try:
                small = pruned(net, sparsity, "filter", "uniform")
            except Unreachable as why:
                print(f"slim {share} is left out: {why}")
                continue
            shrink_([small], multiple=MULTIPLE)
            found[f"slim {share}"] = small
    return found


def train(net: nn.Module, images: Tensor) -> Callable[[], object]:
    """Forward, backward, SGD with momentum, in bfloat16."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        net.train()
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16):
            net(images).float().square().mean().backward()
        optimizer.step()

    return step


def infer(net: nn.Module, images: Tensor) -> Callable[[], object]:
    """Features in eval mode, weights and images in bfloat16."""
    net = copy.deepcopy(net).to(torch.bfloat16).eval()
    images = images.to(torch.bfloat16)

    def run() -> object:
        with torch.no_grad():
            return net(images)

    return run


def infer_two_of_four(net: nn.Module, images: Tensor) -> Callable[[], object]:
    """The same with 2:4 linear layers in torch's compressed form."""
    net = pruned(net, 1.0, "2:4", "uniform").to(images.device).eval()
    semi_structured(net, torch.bfloat16)
    images = images.to(torch.bfloat16)

    def run() -> object:
        with torch.no_grad():
            return net(images)

    return run


def fastest(works: dict[str, Callable[[], object]], rounds: int, steps: int) -> dict[str, float]:
    """Milliseconds of a call of each, in its best round; all take turns, a first one uncounted."""
    best = dict.fromkeys(works, float("inf"))
    for turn in range(rounds + 1):
        for name, work in works.items():
            _wait()
            start = time.perf_counter()
            for _ in range(steps):
                work()
            _wait()
            if turn:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start) / steps)
    return {name: round(value, 4) for name, value in best.items()}


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def main() -> None:
    """Measure every network that is not in the file yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/gpu_timings.json")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a try on the CPU")
    args = parser.parse_args()
    if args.tiny:
        args.rounds, args.steps = 1, 1
    device = "cpu" if args.tiny else "cuda"
    results = Results(args.out)
    for name, network in (TINY if args.tiny else NETWORKS).items():
        if name not in results:
            results.add(name, measure(network, device, args.rounds, args.steps))
    for name, cell in results.cells.items():
        for activity in ("training step", "inference"):
            base = cell[activity]["dense"]
            for route, value in cell[activity].items():
                print(f"{name:16}{activity:16}{route:28}{value:10.3f} ms {base / value:6.2f}x")


def measure(network: Network, device: str, rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds of both activities by route."""
    shape = (network.batch, 3, network.side, network.side)
    images = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    nets = {
        name: net.to(device, memory_format=torch.channels_last)
        for name, net in routes(network).items()
    }
    inference = {name: infer(net, images) for name, net in nets.items()}
    if not network.slims and device == "cuda":
        inference["2:4 linear layers"] = infer_two_of_four(encoder(network), images)
    training = {name: train(net, images) for name, net in nets.items()}
    return {
        "parameters": {n: sum(p.numel() for p in net.parameters()) for n, net in nets.items()},
        "inference": fastest(inference, rounds, steps),
        "training step": fastest(training, rounds, steps),
    }


if __name__ == "__main__":
    main()
