# SPDX-License-Identifier: MIT
"""What sparsity is worth in seconds and megabytes: a ResNet on images of 32x32, CPU.

    python benchmarks/real_speed.py [--backbone resnet18] [--sparsity 0.8 0.9] [--batch 32]
        [--steps 5] [--threads 2] [--width 64]

Every route starts from the same random network, pruned by magnitude. `slim` loses channels until
that share of the parameters is gone; the others lose that share of single weights. For each route:
the largest difference between its features and those of the same masks in a dense network, seconds
of a training step (forward, backward, SGD) and of inference, bytes on disk. Medians of alternating
runs, dense in the same process; a route without a kernel of its own has the dense times.
"""

from __future__ import annotations

import argparse
import copy
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from sparse_ext.config import build
from sparse_ext.coupling import CoupledUnits
from sparse_ext.encoder import Encoder, patch
from sparse_ext.export import export_onnx, save_packed, save_slim
from sparse_ext.export.onnx import OnnxEncoder
from sparse_ext.export.slim import difference
from sparse_ext.shrink import shrink_

SIZE = 32


class Route(NamedTuple):
    """One way of making use of zeros.

    Attributes:
        name: as printed.
        train: one training step; None where it does not train.
        infer: features of a batch.
        off: difference of its features from those of the masked network.
        bytes: on disk.
        parameters: that it holds, zeros included.
    """

    name: str
    train: Callable[[], object] | None
    infer: Callable[[], object]
    off: float
    bytes: int
    parameters: int


def network(name: str, width: int) -> nn.Module:
    """A fresh encoder with the stem for small images."""
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder

    torch.manual_seed(0)
    kwargs = {} if width == 64 else {"width": width}
    cfg = {"method": "simclr", "backbone": {"name": name, "kwargs": kwargs}}
    return build_encoder(OmegaConf.create({**cfg, "data": {"dataset": "cifar10"}}))


def pruned(net: nn.Module, sparsity: float, channels: bool) -> nn.Module:
    """A copy with masks by magnitude, over all layers together."""
    granularity = "filter" if channels else "element"
    config = build({"name": "gmp", "granularity": granularity, "stem_dense": not channels})
    net = patch(copy.deepcopy(net), config)
    encoder = Encoder(net)
    if channels:
        units = CoupledUnits("filter", encoder, net)
        share = _share_of_channels(net, units, encoder, sparsity)
        print(f"slim: {share:.1%} of the channels that can go")
    else:
        from sparse_ext.units import Units

        units, share = Units("element", encoder.masks.shapes), sparsity
    values = units.pool({name: weight.abs() for name, weight in encoder.weights.items()})
    encoder.change(units.expand(units.largest(values, share), encoder), "zero")
    return net


def _share_of_channels(
    net: nn.Module, units: CoupledUnits, encoder: Encoder, sparsity: float
) -> float:
    """The share of channels that takes that share of the parameters with it, by bisection."""
    values = units.pool({name: weight.abs() for name, weight in encoder.weights.items()})
    full, low, high = sum(p.numel() for p in net.parameters()), 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        trial = copy.deepcopy(net)
        try:
            kept = units.largest(values, middle)
        except ValueError:  # some layer would lose its last channel
            high = middle
            continue
        Encoder(trial).change(units.expand(kept, encoder), "zero")
        left = shrink_([trial]).parameters[1]
        low, high = (middle, high) if left > (1 - sparsity) * full else (low, middle)
    return low


def trainer(net: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """One step: forward, backward, SGD with momentum."""
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        net.train()
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()

    return step


def infer(net: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """Features, in eval mode."""

    def run() -> object:
        net.eval()
        with torch.no_grad():
            return net(images)

    return run


def parameters(net: nn.Module) -> int:
    """How many numbers it holds."""
    return sum(p.numel() for p in net.parameters())


def routes(net: nn.Module, sparsity: float, images: torch.Tensor, folder: Path) -> list[Route]:
    """Dense, masked, packed, slim, and slim in ONNX Runtime."""
    found = []

    def add(name: str, one: nn.Module, off: float, path: Path, trains: bool = True) -> None:
        train = trainer(copy.deepcopy(one), images) if trains else None
        size = path.stat().st_size
        found.append(Route(name, train, infer(one, images), off, size, parameters(one)))

    torch.save(net.state_dict(), folder / "dense.pt")
    add("dense", net, 0.0, folder / "dense.pt")
    element = pruned(net, sparsity, channels=False)
    save_packed(element.state_dict(), folder / "packed")
    add("masked, packed file", element, 0.0, folder / "packed")
    save_packed(element.state_dict(), folder / "half", half=True)
    add("masked, packed float16", element, 0.0, folder / "half", trains=False)
    masked = pruned(net, sparsity, channels=True)
    slim = copy.deepcopy(masked)
    shrink_([slim])
    save_slim(slim, folder / "slim")
    add("slim", slim, difference(masked, slim, SIZE), folder / "slim")
    try:
        export_onnx(slim, folder / "slim.onnx", SIZE)
        runtime = OnnxEncoder(folder / "slim.onnx", torch.get_num_threads())
    except ValueError as missing:  # ConfigError: no ONNX here
        print(missing)
        return found
    off, size = difference(masked, runtime, SIZE), (folder / "slim.onnx").stat().st_size
    found.append(
        Route("slim, ONNX Runtime", None, infer(runtime, images), off, size, parameters(slim))
    )
    return found


def alternating(works: list[Callable[[], object] | None], repeats: int) -> list[float | None]:
    """Median seconds of each; one after the other in every round, so that load hits all alike."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, seen in zip(works, times, strict=True):
            if work is None:
                continue
            start = time.perf_counter()
            work()
            if turn:
                seen.append(time.perf_counter() - start)
    return [statistics.median(seen) if seen else None for seen in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, ", end="")
    print(f"{args.threads} threads, torch {torch.__version__}, {args.backbone}, batch {args.batch}")
    head = f"{'':24}{'parameters':>12}{'off by':>9}{'step ms':>9}{'':>7}{'infer ms':>9}{'':>7}"
    images = torch.randn(args.batch, 3, SIZE, SIZE)
    for sparsity in args.sparsity:
        print(f"\n{sparsity:.0%} of the parameters\n{head}{'MB':>8}")
        with tempfile.TemporaryDirectory() as folder:
            net = network(args.backbone, args.width)
            found = routes(net, sparsity, images, Path(folder))
            steps = alternating([route.train for route in found], args.steps)
            runs = alternating([route.infer for route in found], args.steps)
        for route, step, run in zip(found, steps, runs, strict=True):
            times = f"{_time(step, steps[0])}{_time(run, runs[0])}{route.bytes / 1e6:8.2f}"
            print(f"{route.name:24}{route.parameters:12,}{route.off:9.0e}{times}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\npeak memory of the whole process: {peak:,.0f} MB")


def _time(seconds: float | None, dense: float | None) -> str:
    if seconds is None or dense is None:
        return f"{'-':>9}{'':>7}"
    return f"{1e3 * seconds:9.1f}{dense / seconds:6.2f}x"


if __name__ == "__main__":
    main()
