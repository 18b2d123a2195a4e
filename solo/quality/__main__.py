# SPDX-License-Identifier: MIT
"""`python3 -m solo.quality RUN --data FOLDER`: RankMe, LiDAR and alpha-ReQ of a run's encoder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from solo.programs.app import exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python3 -m solo.quality", description=__doc__)
    parser.add_argument("run", help="folder of a run, or a checkpoint with args.json beside it")
    parser.add_argument("--data", required=True, help="folder of images, in subfolders or not")
    parser.add_argument("--encoder", choices=("online", "momentum"), default="online")
    parser.add_argument("--images", type=_count, default=2048, help="at most so many")
    parser.add_argument("--views", type=_count, default=8, help="augmentations per image, of LiDAR")
    parser.add_argument("--batch_size", type=_count, default=64)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the augmentations")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    return exit_code(lambda: _answer(args))


def _answer(args: argparse.Namespace) -> None:
    from solo.programs.evaluation import device_of
    from solo.quality.program import quality_of_run

    options = {k: v for k, v in vars(args).items() if k not in ("json", "device")}
    figures = quality_of_run(**options, device=device_of(args.device))
    print(json.dumps(figures, indent=1) if args.json else _text(figures))


def _text(figures: dict[str, Any]) -> str:
    dim, n = figures["dimensions"], figures["images"]
    lines = [
        f"{figures['encoder']} encoder, {dim} features, {n} images",
        f"RankMe     {figures['rankme']:8.2f}   of at most {min(dim, n)}",
    ]
    if "lidar" in figures:
        most = min(dim, n - 1)
        lines.append(
            f"LiDAR      {figures['lidar']:8.2f}   of at most {most}, {figures['views']} views each"
        )
    lines.append(f"alpha-ReQ  {figures['alpha_req']:8.2f}   about 1 is good")
    if n < 5 * dim:
        lines.append(f"RankMe and LiDAR settle from about {5 * dim} images on (5 per feature).")
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
