# SPDX-License-Identifier: MIT
"""Iterative magnitude pruning of any method, and training under the masks that it finds.

python main_tickets.py --config-path scripts/pretrain/cifar --config-name rotnet.yaml +tickets=cifar
python main_tickets.py --config-path scripts/pretrain/cifar --config-name supervised.yaml \\
    +retrain=random_reinit retrain.source=tickets/rotnet-cifar10/seed-5 name=rotnet-masks
"""

import hydra
from omegaconf import DictConfig

from solo.programs.app import hydra_program, run_program
from sparse_ext.tickets.config import TicketsProgram
from sparse_ext.tickets.extension import register


@hydra.main(version_base="1.2")
def run(cfg: DictConfig) -> None:
    """Run the sweep or the re-training of `cfg`."""
    from sparse_ext.tickets.program import tickets

    run_program(lambda: tickets(cfg))


def main() -> None:
    """Entry point: also of the console command solo-tickets."""
    register()
    hydra_program(run, TicketsProgram)


if __name__ == "__main__":
    main()
