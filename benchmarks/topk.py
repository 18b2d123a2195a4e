# SPDX-License-Identifier: MIT
"""Time of an exact global threshold over ResNet-18's weights, against sort and kthvalue.

    python benchmarks/topk.py [--device cuda] [--keep 0.1]

Prints the median of several runs in milliseconds. Each finds the exact k-th value; only
`global_topk` also gives masks that hold exactly k entries under ties.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torchvision

from sparse_ext.allocation.budgets import global_topk


def median_ms(call, device, repeats=7):
    """Median wall-clock time of `call` after one warm-up, in milliseconds."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--keep", default=0.1, type=float)
    args = parser.parse_args()
    model = torchvision.models.resnet18().to(args.device)
    scores = {n: p.detach().abs() for n, p in model.named_parameters() if p.dim() == 4}
    flat = torch.cat([s.flatten() for s in scores.values()])
    k = round(args.keep * flat.numel())
    print(f"{flat.numel():,} scores, keep {k:,}, {args.device}, {torch.get_num_threads()} threads")
    for name, call in (
        ("global_topk (masks)", lambda: global_topk(scores, k)),
        ("torch.sort", lambda: torch.sort(flat)),
        ("torch.topk", lambda: torch.topk(flat, k)),
        ("torch.kthvalue", lambda: torch.kthvalue(flat, flat.numel() - k + 1)),
    ):
        print(f"{name:22s}{median_ms(call, args.device):10.1f} ms")


if __name__ == "__main__":
    main()
