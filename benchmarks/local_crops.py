# SPDX-License-Identifier: MIT
"""A multi-crop step of a ViT with the crops of one size as one batch, against one view at a time.

    python3 benchmarks/local_crops.py [--batch 4] [--local 8] [--rounds 7]

Both steps have the same weights, images and loss (printed), run in turn in the same process, and
are measured in CPU time of one thread; the table shows medians. DINO's loss, two global crops,
forward and backward. What one batch saves is the fixed cost of each operation: much where the crops
of a view are little work (small batches, small crops), nothing where a view fills the machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf  # noqa: E402

from solo.methods import METHODS  # noqa: E402


def build(args: argparse.Namespace) -> torch.nn.Module:
    """DINO with local crops on a ViT-Tiny of the given depth for 32x32 images."""
    cfg = {
        "method": "dino",
        "backbone": {
            "name": "vit_tiny",
            "kwargs": {
                "patch_size": args.patch,
                "img_size": args.side,
                "dynamic_img_size": True,
                "depth": args.depth,
            },
        },
        "method_kwargs": {
            "proj_hidden_dim": 256,
            "proj_output_dim": 64,
            "num_prototypes": 512,
            "local_crops": True,
        },
        "momentum": {},
        "data": {
            "dataset": "custom",
            "num_classes": 10,
            "num_large_crops": 2,
            "num_small_crops": args.local,
        },
        "optimizer": {
            "name": "adamw",
            "batch_size": args.batch,
            "lr": 1e-3,
            "classifier_lr": 1e-3,
            "weight_decay": 0.04,
        },
        "scheduler": {"name": "none"},
        "max_epochs": 1,
    }
    torch.manual_seed(0)
    return METHODS["dino"](OmegaConf.create(cfg))


def one_by_one(model: torch.nn.Module) -> torch.nn.Module:
    """The same method, encoding each crop by itself."""
    model = copy.deepcopy(model)
    model._as_one_batch = lambda encoder, *methods: False
    return model


def step(model: torch.nn.Module, batch: list) -> float:
    """Forward and backward; the loss."""
    model.zero_grad(set_to_none=True)
    loss = model.training_step(batch, 0)
    loss.backward()
    return loss.item()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--local", type=int, default=8)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--small", type=int, default=16)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # there is no trainer to log to
    torch.set_num_threads(1)
    joint = build(args)
    models = {"one batch": joint, "one by one": one_by_one(joint)}
    sides = [args.side] * 2 + [args.small] * args.local
    views = [torch.randn(args.batch, 3, side, side) for side in sides]
    batch = [torch.arange(args.batch), views, torch.arange(args.batch) % 10]
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses: dict[str, float] = {}
    for round_ in range(args.rounds + 1):
        for name, model in models.items():
            model.dino_loss_func.center.zero_()
            start = time.process_time()
            losses[name] = step(model, batch)
            if round_:
                seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"ViT-Tiny, patches of {args.patch}, depth {args.depth}, batch {args.batch}, 2 crops of "
        f"{args.side} and {args.local} of {args.small} pixels, torch {torch.__version__}, 1 thread"
    )
    for name, median in medians.items():
        print(f"{name:12s} {1000 * median:8.1f} ms of CPU time   loss {losses[name]:.6f}")
    print(f"ratio {medians['one by one'] / medians['one batch']:.2f}")


if __name__ == "__main__":
    main()
