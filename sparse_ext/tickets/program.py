# SPDX-License-Identifier: MIT
"""`main_tickets.py`: a sweep or a re-training, by what the configuration holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from solo.errors import ConfigError
from sparse_ext.tickets.config import RetrainConfig, TicketsConfig, build

if TYPE_CHECKING:
    from sparse_ext.tickets.run_folder import RunFolder


def tickets(cfg: DictConfig) -> RunFolder:
    """Run what `cfg` asks for: its section `tickets` (a sweep) or `retrain`.

    Raises:
        SoloError: a mistake in the configuration, or the folder belongs to another run.
    """
    OmegaConf.set_struct(cfg, False)
    given = [name for name in ("tickets", "retrain") if cfg.get(name) is not None]
    if len(given) != 1:
        what = "both 'tickets' and 'retrain'" if given else "neither 'tickets' nor 'retrain'"
        raise ConfigError(
            f"the configuration has {what}: add one of them, as in +tickets=cifar for a sweep or "
            "+retrain=random_reinit retrain.source=FOLDER"
        )
    section = OmegaConf.to_container(cfg[given[0]], resolve=True)
    if given == ["tickets"]:
        from sparse_ext.tickets.sweeps.sweep import sweep

        return sweep(cfg, build(TicketsConfig, section, "tickets"))
    from sparse_ext.tickets.sweeps.retrain import retrain

    return retrain(cfg, build(RetrainConfig, section, "retrain"))
