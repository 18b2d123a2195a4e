# SPDX-License-Identifier: MIT
"""Export a channel-gated run as an encoder that computes open channels only.

python3 -m sparse_ext.gating.export RUN --output FOLDER

RUN is a checkpoint, or the folder of a run, which stands for its newest checkpoint. The result is
compared with the masked simulation on random images before it is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; 0, or 2 after a message for an error."""
    parser = argparse.ArgumentParser(
        prog="python3 -m sparse_ext.gating.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="checkpoint, or folder of a run")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--eval_encoder", choices=("online", "momentum"), default="online")
    args = parser.parse_args(argv)
    from solo.programs.app import exit_code
    from sparse_ext.extension import register

    register()

    return exit_code(lambda: _export(args.run, args.output, args.eval_encoder))


def _export(run: Path, output: Path, which: str) -> None:
    from solo.checkpoints.runs import load_run, weights_file
    from solo.data.shown import input_size
    from solo.errors import CheckpointError
    from sparse_ext.gating.export import export_gated, save_gated

    path = weights_file(run)
    backbone, args = load_run(path, which)
    size = input_size(args)
    facts = {"dataset": args["data"]["dataset"], "image_size": size, "source": path.name}
    encoder = export_gated(backbone.eval(), facts)
    worst = deviation(backbone, encoder, size)
    print(f"{path}: {which} encoder, largest deviation from the simulation {worst:.2g} (8 images)")
    if not worst < TOLERANCE:
        raise CheckpointError(
            f"The exported encoder deviates by {worst:.2g}, more than {TOLERANCE:g}: it was not "
            f"written. Are the checkpoint's weights finite, and its features of ordinary size?"
        )
    save_gated(encoder, output)
    print(f"Wrote {output}: sparse_ext.gating.export.load_gated({str(output)!r})")


def deviation(backbone: Any, encoder: Any, size: int, images: int = 8) -> float:
    """Largest difference between the features of the simulation and of the exported encoder.

    Relative to the largest feature where that is above 1.

    Args:
        backbone: with gates; takes the gated branch.
        encoder: the exported one.
        size: side of the random images.
        images: how many.
    """
    import torch

    from solo.backbones import input_channels
    from sparse_ext.gating.encoder import choose

    shape = (images, input_channels(backbone), size, size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    choose(backbone, "gated")
    with torch.no_grad():
        wanted = backbone.eval()(x)
    return float((encoder(x) - wanted).abs().max() / wanted.abs().max().clamp(min=1))


if __name__ == "__main__":
    sys.exit(main())
