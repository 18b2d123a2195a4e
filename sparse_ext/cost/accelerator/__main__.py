# SPDX-License-Identifier: MIT
"""Training time on a tensor-core accelerator with 8x8 blocks: a cycle model (SyncCP, Table 7).

    python3 -m sparse_ext.cost.accelerator CHECKPOINT

The paper prints speed-ups of 1.74 and 1.91 of an accelerator of which little is published: see
`sparse_ext.cost.accelerator.cycle_model` for what is counted and what is assumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from sparse_ext.cost.accelerator.cycle_model import Machine, speed_up
from sparse_ext.cost.accelerator.run import load

PAPER = {0.8: 1.74, 0.9: 1.91}  # BYOL, ResNet-18, CIFAR-10: final sparsity -> speed-up (Table 7)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the model's answer for a checkpoint; 0, or 2 after a message for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sparse_ext.cost.accelerator", description=__doc__.split("\n")[0]
    )
    parser.add_argument("checkpoint", help="a .ckpt file of a sparse run, args.json beside it")
    parser.add_argument("--input_size", type=int, help="image side; by default the dataset's")
    for name, value in asdict(Machine()).items():
        if name != "dense_gradients":
            parser.add_argument(f"--{name}", type=_positive, default=value)
    parser.add_argument("--sparse_gradients", action="store_true", help="no dense_gradients")
    args = parser.parse_args(argv)
    from solo.programs.app import exit_code
    from sparse_ext.extension import register

    register()

    named = {name: getattr(args, name) for name in asdict(Machine()) if hasattr(args, name)}
    machine = Machine(**named, dense_gradients=not args.sparse_gradients)
    return exit_code(lambda: print(answer(args.checkpoint, machine, args.input_size)))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def answer(checkpoint: str, machine: Machine, size: int | None = None) -> str:
    """The text that the command prints about one checkpoint.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is of no sparse run.
    """
    run = load(checkpoint, size)
    found = speed_up(run.layers, run.now, run.initial, run.schedule, machine)
    momentum = "" if found.momentum is None else f", momentum {found.momentum:.1%}"
    paper = "; ".join(f"{s:.0%}: {x}x" for s, x in PAPER.items())
    return "\n".join(
        [
            "accelerator model of sparse training: modelled cycles, nothing is measured",
            *machine.describe(),
            f"pruned 8x8 blocks, from the masks: online {found.online:.1%}{momentum}",
            f"ours, a step with these masks:      {found.final:.2f}x over dense",
            f"ours, all {run.steps} steps up to here: {found.run:.2f}x over dense",
            f"the paper (BYOL, ResNet-18, CIFAR-10, 8x8 blocks; final sparsity): {paper}",
            "Several sets of assumptions give the paper's two numbers: agreement proves none.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
