# SPDX-License-Identifier: MIT
"""The block-sparse convolution beside torch's dense one (oneDNN, float32): ResNet-18 at 32x32.

    python benchmarks/block_conv.py [--sparsity 0.8 0.9] [--batch 64] [--threads 2] [--repeats 7]
        [--layers layer1 layer4]

Every distinct convolution with masks (all but the stem) is timed by itself: forward, input gradient
and weight gradient (of kept blocks), in milliseconds, the best of the repeats, dense and sparse
in turns in one process. Dense takes the faster of both memory formats, each time; sparse includes
everything a call does: packing activations, allocating its output, gathering the kept blocks (for
the forward pass; the input gradient uses them again). The network's line adds up all layers, each
as often as it occurs.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable

import torch
from measuring import fastest, keep_memory
from torch import Tensor
from torch.nn import functional as F

from sparse_ext.kernels import Plan, build, compiled
from sparse_ext.kernels.plan import Window
from sparse_ext.masks.granularity import Block

# name, inputs, outputs, kernel, stride, side of the input, how often it occurs
LAYERS = [
    ("layer1 3x3", 64, 64, 3, 1, 32, 4),
    ("layer2 3x3 stride 2", 64, 128, 3, 2, 32, 1),
    ("layer2 3x3", 128, 128, 3, 1, 16, 3),
    ("layer2 1x1 stride 2", 64, 128, 1, 2, 32, 1),
    ("layer3 3x3 stride 2", 128, 256, 3, 2, 16, 1),
    ("layer3 3x3", 256, 256, 3, 1, 8, 3),
    ("layer3 1x1 stride 2", 128, 256, 1, 2, 16, 1),
    ("layer4 3x3 stride 2", 256, 512, 3, 2, 8, 1),
    ("layer4 3x3", 512, 512, 3, 1, 4, 3),
    ("layer4 1x1 stride 2", 256, 512, 1, 2, 8, 1),
]
PASSES = ("forward", "input grad", "weight grad")
GOALS = {0.8: 3.0, 0.9: 6.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", nargs="+", default=[""], help="those whose names begin so")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layers = [row for row in LAYERS if row[0].startswith(tuple(args.layers))]
    print(f"machine: {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}", end=", ")
    print(f"{args.threads} threads, torch {torch.__version__}, float32, batch {args.batch}")
    keep_memory()
    build.library()
    for sparsity in args.sparsity:
        report(layers, sparsity, args.batch, args.repeats)


def report(layers: list, sparsity: float, batch: int, repeats: int) -> None:
    """The table of one sparsity."""
    print(f"\n{sparsity:.0%} of the 8x8 blocks pruned; ms dense / ms sparse = times faster")
    print(f"{'':21}" + "".join(f"{name:>26}" for name in (*PASSES, "all")))
    totals = [[0.0, 0.0] for _ in PASSES]
    for name, *sides, times in layers:
        found = measure(*sides, sparsity, batch, repeats)
        print(f"{name:21}" + line(found), flush=True)
        for total, pair in zip(totals, found, strict=True):
            total[0], total[1] = total[0] + times * pair[0], total[1] + times * pair[1]
    print(f"{'all convolutions':21}" + line(totals))
    if sparsity in GOALS:
        print(f"goal: {GOALS[sparsity]:g} times faster")


def line(pairs: list) -> str:
    """Cells of one row, the sum at its end."""
    both = [sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)]
    cells = (f"{1e3 * d:.2f} /{1e3 * s:6.2f} = {d / s:5.2f}" for d, s in [*pairs, both])
    return "".join(f"{cell:>26}" for cell in cells)


def measure(
    inputs: int, outputs: int, kernel: int, stride: int, side: int,
    sparsity: float, batch: int, repeats: int,
) -> list[list[float]]:  # fmt: skip
    """[seconds dense, seconds sparse] per pass."""
    torch.manual_seed(0)
    padding = kernel // 2
    weight = torch.randn(outputs, inputs, kernel, kernel)
    blocks = Block(8)
    mask = blocks.expand(torch.rand(blocks.n_groups(tuple(weight.shape))) >= sparsity, weight)
    plan = Plan(mask, Window((stride, stride), (padding, padding)))
    x = torch.randn(batch, inputs, side, side)
    tensors = {
        layout: [t.to(memory_format=layout) for t in (x, weight * mask)]
        for layout in (torch.channels_last, torch.contiguous_format)
    }
    calls = {layout: dense(*pair, stride, padding) for layout, pair in tensors.items()}
    sparse = sparse_calls(*tensors[torch.channels_last], plan)
    with torch.no_grad():
        times = fastest([*(c for three in calls.values() for c in three), *sparse], repeats)
    last, contiguous, mine = times[:3], times[3:6], times[6:]
    return [[min(a, b), c] for a, b, c in zip(last, contiguous, mine, strict=True)]


def dense(x: Tensor, weight: Tensor, stride: int, padding: int) -> list[Callable[[], object]]:
    """Torch's three passes."""
    sides = [stride, stride], [padding, padding], [1, 1]
    grad = torch.ones_like(F.conv2d(x, weight, None, *sides))

    def backward(wanted: tuple[bool, bool, bool]) -> Callable[[], object]:
        rest = (*sides, False, [0, 0], 1, wanted)
        return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)

    first = lambda: F.conv2d(x, weight, None, *sides)  # noqa: E731
    return [first, backward((True, False, False)), backward((False, True, False))]


def sparse_calls(x: Tensor, weight: Tensor, plan: Plan) -> list[Callable[[], object]]:
    """The kernel's three passes."""
    blocks = compiled.kept_blocks(weight, plan)
    grad = torch.ones_like(compiled.forward(x, blocks, None, plan))
    size = (x.shape[2], x.shape[3])
    return [
        lambda: compiled.forward(x, compiled.kept_blocks(weight, plan), None, plan),
        lambda: compiled.input_gradient(grad, blocks, plan, size),
        lambda: compiled.weight_gradient(x, grad, plan, weight),
    ]


if __name__ == "__main__":
    main()
