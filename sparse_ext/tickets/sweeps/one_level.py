# SPDX-License-Identifier: MIT
"""What a sweep and a re-training share: their configuration, their folder, one training."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.seeding import mix
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.config import TicketConfig, plain
from sparse_ext.tickets.extension import beginning

if TYPE_CHECKING:
    from sparse_ext.tickets.run_folder import Level

OURS = ("tickets", "retrain", "ticket")
_REINIT = 0x7E1E7  # tells these draws from others of the same seed
# keys of the sections that do not change what a level holds
_FREE = ("dir", "figure", "curve", "levels")


class Training:
    """Trainings of one configuration below one run folder.

    Args:
        cfg: composed configuration of a pretraining run, with one of our sections.
        kind: `tickets` or `retrain`.
        config: that section, checked.

    Raises:
        ConfigError: the configuration is wrong, or sparse by other means.
    """

    def __init__(self, cfg: DictConfig, kind: str, config: Any) -> None:
        self.kind, self.config = kind, config
        self.cfg = copy.deepcopy(cfg)
        for section in OURS:
            self.cfg.pop(section, None)
        for section in ("sparse", "gating"):
            if self.cfg.get(section) is not None:
                raise ConfigError(
                    f"{section}: a ticket's masks are fixed while it trains, so main_tickets.py "
                    "does not go with this section; remove it"
                )
        self.parsed = _parsed(self.cfg)
        name = f"seed-{self.parsed.seed}"
        self.folder = run_folder.RunFolder(Path(config.dir) / self.cfg.name / name)
        self.seed: int = self.parsed.seed

    @property
    def first_rank(self) -> bool:
        """Whether this process is the one that writes files."""
        return getattr(rank_zero_only, "rank", 0) == 0

    def alone(self) -> Any:
        """Lock the folder and claim it for this configuration."""
        return self.folder.alone() if self.first_rank else nullcontext()

    def claim(self) -> None:
        """Take the run folder for this series (see `RunFolder.claim`)."""
        if self.first_rank:
            self.folder.claim(self.facts())

    def facts(self) -> dict[str, Any]:
        """The content of `run.json` for this series."""
        from solo.utils.auto_resumer import fingerprint

        section = {k: v for k, v in plain(self.config).items() if k not in _FREE}
        return {
            "kind": self.kind,
            "figure": self.config.figure,
            "curve": self.config.curve or self.cfg.name,
            "seed": self.seed,
            "method": self.cfg.method,
            "section": plain(self.config),
            "fingerprint": {
                **fingerprint(self.parsed),
                **{f"{self.kind}.{key}": value for key, value in section.items()},
            },
        }

    def encoder(self, level: int | None = None) -> nn.Module:
        """A fresh encoder on the CPU; for every level another draw of the initialisation."""
        from solo.backbones import build_encoder

        with torch.random.fork_rng(devices=[]):
            if level is not None:
                torch.manual_seed(mix(self.seed, level, _REINIT))
            return build_encoder(self.parsed)

    def prepare(self, level: Level, masks: Mapping[str, Tensor], reinit: bool) -> None:
        """Write the masks of a level and, if it starts from one, a fresh initialisation."""
        MaskSet(masks).save(level.mask)
        if reinit:
            weights = run_folder.encoder_weights(self.encoder(level.number))
            run_folder.save_weights(level.initial, weights)

    def train(self, level: Level, weights: str, **snapshots: Any) -> None:
        """Train one level by the pretraining program; killed, the next call goes on in the middle.

        Args:
            level: its masks are written.
            weights: what the encoder starts from; empty: the method's own initialisation.
            snapshots: `initial`, `rewind` and `rewind_step` of `TicketConfig`.
        """
        from solo.programs.pretrain import pretrain

        began = time.monotonic()
        # of the masks themselves: the order of a mask file's metadata is not always the same
        checksum = (
            f"{level.masks().checksum()}/{run_folder.digest(Path(weights)) if weights else ''}"
        )
        ticket = TicketConfig(
            masks=str(level.mask), weights=weights, checksum=checksum, **snapshots
        )
        cfg = copy.deepcopy(self.cfg)
        cfg.ticket = plain(ticket)
        OmegaConf.update(cfg, "checkpoint.enabled", True, force_add=True)
        OmegaConf.update(cfg, "checkpoint.dir", str(level.train), force_add=True)
        cfg.auto_resume = {"enabled": True, "max_hours": 1e9}
        with beginning():
            trainer = pretrain(cfg)
        if self.first_rank:
            module = trainer.lightning_module
            run_folder.save_weights(level.final, run_folder.encoder_weights(module.backbone))  # type: ignore[union-attr,arg-type]
            level.finish(_record(level, time.monotonic() - began))
        run_folder.wait_for(level.folder / run_folder.DONE)

    def report(self, level: Level) -> None:
        """Print one line about a level that is finished."""
        done = level.done
        if done is None or not self.first_rank:
            return
        shown = {k: v for k, v in done["metrics"].items() if "acc" in k or "map" in k}
        figures = ", ".join(f"{k} {v:.2f}" for k, v in shown.items())
        print(f"{level.folder}: {100 * done['density']:.3g}% of the weights; {figures}", flush=True)


def _parsed(cfg: DictConfig) -> DictConfig:
    """A checked copy with all defaults, as the pretraining program sees it."""
    from solo.args import schema
    from solo.args.check import require
    from solo.args.pretrain import parse_cfg

    parsed = parse_cfg(copy.deepcopy(cfg))
    require(parsed, schema.Pretrain)
    return parsed


def _record(level: Level, seconds: float) -> dict[str, Any]:
    from sparse_ext.report.runlog import RunLog

    files = sorted(level.train.glob("*/*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    log = RunLog(files[-1].parent)
    masks = level.masks()
    metrics = {n: s.last for n in log.names if n.startswith("val_") and (s := log.get(n))}
    return {
        "n": masks.n,
        "nnz": masks.nnz,
        "density": masks.density,
        "checksum": masks.checksum(),
        "metrics": metrics,
        "run": str(log.folder.relative_to(level.folder)),
        "seconds": round(seconds, 2),
    }
