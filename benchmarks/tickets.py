# SPDX-License-Identifier: MIT
"""Seconds that pruning, resetting and bookkeeping add to a level, at ResNet-18 size.

python benchmarks/tickets.py [--backbone resnet18] [--repeats 5]

Everything that a level does besides its training: read the last weights and masks, prune 20%
globally, write masks, draw and write a fresh initialisation, load weights and masks into an
encoder, write the final weights and the record.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from omegaconf import OmegaConf

from solo.backbones import build_encoder
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.load_ticket import load_ticket
from sparse_ext.tickets.sweeps import iterative_pruning
from sparse_ext.tickets.sweeps.sweep import next_masks

LIMIT = 2.0


def main() -> None:
    """Print one line per part and the verdict; exit with 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cfg = OmegaConf.create(
        {"method": "rotnet", "backbone": {"name": args.backbone}, "data": {"dataset": "cifar10"}}
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = [_level(cfg, Path(folder) / str(i)) for i in range(args.repeats)]
    parts = {part: median(row[part] for row in rows) for part in rows[0]}
    for part, seconds in parts.items():
        print(f"{part:<44}{seconds:8.3f} s")
    total = median(sum(row.values()) for row in rows)
    print(f"{'a level besides its training (median)':<44}{total:8.3f} s   limit {LIMIT} s")
    print(f"{args.backbone}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    raise SystemExit(total > LIMIT)


def _level(cfg, folder: Path) -> dict[str, float]:
    run = run_folder.RunFolder(folder)
    before, level = run.level(0), run.level(1)
    encoder = build_encoder(cfg)
    layers = iterative_pruning.restricted(encoder)
    full = {n: torch.ones(tuple(m.weight.shape), dtype=torch.bool) for n, m in layers.items()}
    MaskSet(full).save(before.mask)
    run_folder.save_weights(before.final, run_folder.encoder_weights(encoder))
    seconds, last = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = now - last, now

    masks = next_masks(before, 0.2)
    lap("read, prune 20% of what remains globally")
    MaskSet(masks).save(level.mask)
    lap("write masks")
    run_folder.save_weights(level.initial, run_folder.encoder_weights(build_encoder(cfg)))
    lap("draw and write a fresh initialisation")
    encoder = load_ticket(build_encoder(cfg), level.mask, level.initial)
    lap("reset: build, load weights and masks")
    run_folder.digest(level.initial)
    level.masks().checksum()
    run_folder.save_weights(level.final, run_folder.encoder_weights(encoder))
    loaded = level.masks()
    level.finish({"nnz": loaded.nnz, "checksum": loaded.checksum(), "metrics": {}})
    lap("write final weights and the record")
    return seconds


if __name__ == "__main__":
    main()
