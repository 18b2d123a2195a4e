# SPDX-License-Identifier: MIT
"""Minutes per epoch and memory of the recipe for one's own images, by encoder and image size.

    python3 benchmarks/own_images.py

Every row is a process of its own: BYOL, dense, one thread, generated images; batch, stem and
patches are what the recipe chooses on a CPU. Steps are timed as CPU time, which other programs
disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = [("resnet18", 32), ("resnet18", 64), ("vit_tiny", 64), ("resnet18", 224), ("vit_tiny", 224)]
COUNTS = (1_000, 10_000, 100_000)
BATCH = 64


def measure(backbone: str, size: int, steps: int) -> dict[str, float]:
    """CPU seconds of a step and bytes at most, in this process."""
    import numpy as np
    import torch
    from hydra import compose, initialize_config_dir
    from lightning.pytorch import seed_everything
    from PIL import Image

    from solo.args.pretrain import parse_cfg
    from solo.programs.dry_run import Stopwatch, dry_run, peak_memory
    from solo.programs.pretrain import build_data, build_model

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(BATCH * (steps + 1)):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder, f"{index}.png"))
        with initialize_config_dir(str(ROOT / "scripts/pretrain/custom"), version_base="1.2"):
            keys = [f"data.path={folder}", f"image_size={size}", f"backbone.name={backbone}"]
            keys += [f"optimizer.batch_size={BATCH}", "max_epochs=1", "accelerator=cpu"]
            cfg = parse_cfg(compose("any", keys))
        seed_everything(0, verbose=False)
        watch = Stopwatch(time.process_time, warm_up=1, measured=steps)
        dry_run(cfg, build_model(cfg), build_data(cfg), watch)
    return {"seconds": watch.seconds / watch.steps, "bytes": peak_memory()}


def main() -> int:
    """Measure every row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2, help="that are measured (default: 2)")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row[0], int(args.row[1]), args.steps)))
        return 0
    heads = "".join(f" {count:,} images, min |" for count in COUNTS)
    print(f"| encoder | pixels | s per step |{heads} GB |")
    print("|---|---:|---:|" + "---:|" * (len(COUNTS) + 1))
    for backbone, size in ROWS:
        command = [
            sys.executable,
            __file__,
            "--steps",
            str(args.steps),
            "--row",
            backbone,
            str(size),
        ]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        minutes = [count / BATCH * found["seconds"] / 60 for count in COUNTS]
        cells = " | ".join(f"{value:,.1f}" if value < 10 else f"{value:,.0f}" for value in minutes)
        gb = found["bytes"] / 1e9
        print(f"| {backbone} | {size} | {found['seconds']:.2f} | {cells} | {gb:.1f} |", flush=True)
    print(f"{platform.processor() or platform.machine()}, CPU time of one thread")
    return 0


if __name__ == "__main__":
    sys.exit(main())
