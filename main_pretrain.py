# SPDX-License-Identifier: MIT
"""Self-supervised pretraining.

python main_pretrain.py --config-path scripts/pretrain/cifar --config-name byol.yaml key=value
python main_pretrain.py … +sparse=synccp sparse.final=0.9
python main_pretrain.py … +sparse=synccp sparse.final=0.8,0.9,0.95 --multirun
"""

import hydra
from omegaconf import DictConfig

from solo.args.schema import Pretrain
from solo.programs.app import hydra_program
from solo.programs.multirun import run_job
from sparse_ext.extension import register


@hydra.main(version_base="1.2")
def run(cfg: DictConfig) -> None:
    """Train the method of `cfg`."""
    from solo.programs.pretrain import pretrain

    run_job(cfg, lambda: pretrain(cfg))


def main() -> None:
    """Entry point: also of the console command solo-pretrain."""
    register()
    hydra_program(run, Pretrain)


if __name__ == "__main__":
    main()
