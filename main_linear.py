# SPDX-License-Identifier: MIT
"""Linear evaluation and fine-tuning of a checkpoint.

python main_linear.py --config-path scripts/linear/imagenet-100 --config-name byol.yaml \\
    pretrained_feature_extractor='"path/to/name-ep=99.ckpt"'
"""

import hydra
from omegaconf import DictConfig

from solo.args.schema import Linear
from solo.programs.app import hydra_program
from solo.programs.multirun import run_job
from sparse_ext.extension import register


@hydra.main(version_base="1.2")
def run(cfg: DictConfig) -> None:
    """Train a classifier on the encoder of `cfg`."""
    from solo.programs.linear import linear

    run_job(cfg, lambda: linear(cfg))


def main() -> None:
    """Entry point: also of the console command solo-linear."""
    register()
    hydra_program(run, Linear)


if __name__ == "__main__":
    main()
