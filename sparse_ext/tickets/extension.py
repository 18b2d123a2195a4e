# SPDX-License-Identifier: MIT
"""Training of one level: the section `ticket:` puts masks and weights into any method's encoder.

The training itself is the pretraining program's, unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from solo import extensions
from sparse_ext.tickets.config import TicketConfig, build, plain

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule
    from omegaconf import DictConfig
    from torch import nn


_BEGINNING: ContextVar[bool] = ContextVar("a training begins", default=False)


@contextmanager
def beginning() -> Iterator[None]:
    """While a level's training is built and run."""
    token = _BEGINNING.set(True)
    try:
        yield
    finally:
        _BEGINNING.reset(token)


class TicketExtension(extensions.Extension):
    """Fixed masks, given weights, and snapshots on the way (`ticket:`)."""

    sections = ("ticket",)

    def parse(self, cfg: DictConfig) -> None:
        """Check the section and fill in its defaults, in place."""
        cfg.ticket = plain(_config(cfg))

    def patch_backbone(self, backbone: nn.Module, cfg: DictConfig) -> nn.Module:
        """Load weights and masks into a freshly built encoder, online or momentum.

        Only for a training that begins. An encoder that is rebuilt from a checkpoint finds both
        in there, wherever these files are by then.

        Raises:
            CheckpointError: they do not fit the encoder.
        """
        if not _BEGINNING.get():
            return backbone
        from sparse_ext.tickets.load_ticket import load_ticket

        config = _config(cfg)
        return load_ticket(backbone, config.masks, config.weights or None)

    def callbacks(self, module: LightningModule, cfg: DictConfig) -> list[Callback]:
        """Masks stay as they are; weights are kept before the first step and at the rewind."""
        from sparse_ext.tickets.snapshot import Snapshot
        from sparse_ext.training.fixed_masks import FixedMasks

        config = _config(cfg)
        points = ((config.initial, 0), (config.rewind, config.rewind_step))
        return [FixedMasks(), *(Snapshot(path, step) for path, step in points if path)]


def register() -> None:
    """Make the extensions and the Hydra groups known; twice changes nothing."""
    from sparse_ext.extension import register as register_sparse
    from sparse_ext.tickets.config import store

    register_sparse()
    extensions.register(TicketExtension())
    store()


def _config(cfg: DictConfig) -> TicketConfig:
    from omegaconf import OmegaConf

    section = cfg.ticket
    if OmegaConf.is_config(section):
        section = OmegaConf.to_container(section, resolve=True)
    return build(TicketConfig, section, "ticket")
