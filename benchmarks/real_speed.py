# SPDX-License-Identifier: MIT
"""What sparsity is worth in seconds and megabytes: a ResNet on images of 32x32, CPU.

    python benchmarks/real_speed.py [--backbone resnet18] [--sparsity 0.8 0.9] [--batch 32]
        [--rounds 5] [--threads 1] [--width 64] [--allocation uniform] [--peers deepsparse ...]

Every route starts from the same random network, pruned by magnitude to the same share of its
parameters:

- masked: single weights, over all layers together; dense convolutions compute the zeros. Packing
  changes the file only.
- blocks: 8x8 blocks of output and input channels at one kernel position, the same share of every
  convolution but the stem (or by --allocation), in the kernel of `sparse_ext.kernels`. Its training
  step computes gradients of kept blocks only, as `gmp` and fine-tuning do.
- slim: whole channels, removed physically, in torch and in ONNX Runtime.

`off by` is the largest difference of features from those of the same masks in a dense network, over
the largest feature. A training step is forward, backward and SGD with momentum. Torch's times are
those of the faster memory format of two (contiguous, channels_last), each the best of several
rounds in which all take turns; peak memory is that of a process of its own for each route and
activity, above the same process after a network of next to nothing.

Single weights in the element-wise kernel follow, as `element_conv.py` measures them, in float32 and
bfloat16 and beside `--peers`; the last line is its JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import element_conv
import torch
from engines import ENGINES
from measuring import fastest, keep_memory, peak_memory
from routes import SIZE, Route, network, routes
from torch import nn

from sparse_ext.export import OnnxEncoder


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


def warm_up() -> None:
    """Loads what any of the routes loads, with a network of next to nothing."""
    net, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), torch.randn(2, 3, 8, 8)
    trainer(net, images)()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tiny"
        torch.save(net, file)
        torch.load(file, weights_only=False)


def prepare(file: Path, trains: bool, batch: int, threads: int) -> Callable[[], object]:
    """The work of a route in a process of its own; `file` is a pickled network or ONNX."""
    torch.set_num_threads(threads)
    images = torch.randn(batch, 3, SIZE, SIZE)
    if file.suffix == ".onnx":
        return infer(OnnxEncoder(file, threads), images)
    net = torch.load(file, weights_only=False)
    return (trainer if trains else infer)(net, images)


def memory(route: Route, best: int, trains: bool, batch: int) -> float:
    """Peak MB of a route; `best` of its networks."""
    file = route.file
    if file.suffix != ".onnx":
        file = route.file.with_name("whole")
        torch.save(route.nets[best], file)
    return peak_memory(warm_up, prepare, file, trains, batch, torch.get_num_threads())


def measure(found: list[Route], images: torch.Tensor, rounds: int, trains: bool) -> dict:
    """Seconds and MB of each route, by name."""
    taking = [route for route in found if route.trains or not trains]
    nets = [net for route in taking for net in route.nets]
    if trains:
        works = [trainer(copy.deepcopy(net), images) for net in nets]
    else:
        works = [infer(net, images) for net in nets]
    times, results = iter(fastest(works, rounds)), {}
    for route in taking:
        if route.nets:
            own = [next(times) for _ in route.nets]
            best = own.index(min(own))
            results[route.name] = own[best], memory(route, best, trains, len(images))
    return results


HEAD = (
    "| route | parameters | off by | training step | | peak MB | inference | | peak MB | file MB |"
)


def table(found: list[Route], steps: dict, runs: dict) -> str:
    """Markdown; times in ms, with how many times faster than dense."""
    lines = [HEAD, "|---|" + "---:|" * 9]
    for route in found:
        cells = [route.name, f"{route.parameters:,}", f"{route.off:.0e}" if route.off else "0"]
        for results in (steps, runs):
            if route.name in results:
                seconds, peak = results[route.name]
                ratio = results["dense"][0] / seconds
                cells += [f"{1e3 * seconds:.1f}", f"{ratio:.2f}x", f"{peak:.0f}"]
            else:
                cells += ["–" if route.nets else "as masked", "", ""]
        size = route.file.stat().st_size
        smaller = found[0].file.stat().st_size / size
        cells.append(f"{size / 1e6:.2f} ({smaller:.1f}x)")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--allocation", default="uniform", choices=["uniform", "erk"])
    parser.add_argument("--peers", nargs="*", default=[], choices=list(ENGINES))
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, ", end="")
    print(f"{args.threads} threads, torch {torch.__version__}, {args.backbone}, batch {args.batch}")
    images = torch.randn(args.batch, 3, SIZE, SIZE)
    for sparsity in args.sparsity:
        print(f"\n{sparsity:.0%} of the parameters")
        with tempfile.TemporaryDirectory() as folder:
            net = network(args.backbone, args.width)
            found = routes(net, sparsity, args.allocation, Path(folder))
            steps = measure(found, images, args.rounds, trains=True)
            runs = measure(found, images, args.rounds, trains=False)
            print("\n" + table(found, steps, runs), flush=True)
    print("\nsingle weights")
    print(json.dumps(element_conv.measure(single_weights(args))))


def single_weights(args: argparse.Namespace) -> argparse.Namespace:
    """What `element_conv.py` is to measure."""
    fixed = {"size": SIZE, "dense_gradient": False, "activities": ["step", "inference"]}
    return argparse.Namespace(**(vars(args) | fixed))


if __name__ == "__main__":
    main()
