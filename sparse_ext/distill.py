# SPDX-License-Identifier: MIT
"""Distillation as a term beside any method: `++distill.teacher=RUN ++distill.weight=1`.

The encoder's features of the large crops are drawn to those of a frozen teacher, while the method
trains it as it does. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from solo import extensions
from solo.errors import ConfigError, did_you_mean
from sparse_ext.config.reading import fill

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule
    from omegaconf import DictConfig
    from torch import Tensor

KINDS = ("cosine", "smooth_l1")


@dataclass(frozen=True)
class DistillConfig:
    """The settings of the term.

    Attributes:
        teacher: a run folder, a weight file, or `timm:NAME`.
        weight: factor of the distance in the training loss, above 0.
        loss: `cosine` or `smooth_l1` (`solo.losses.distill`).
        teacher_backbone: `{name, kwargs, mean, std}` of the encoder in a file that no run wrote.
    """

    teacher: str = ""
    weight: float = 1.0
    loss: str = "cosine"
    teacher_backbone: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.teacher:
            raise ConfigError("distill.teacher is missing: name a run folder, a file or timm:NAME.")
        if not self.weight > 0:
            raise ConfigError(f"distill.weight={self.weight} must be above 0.")
        if self.loss not in KINDS:
            hint = did_you_mean(self.loss, KINDS)
            raise ConfigError(f"distill.loss={self.loss} is unknown. {hint}")


class DistillExtension(extensions.Extension):
    """The section `distill:` of a pretraining configuration."""

    sections = ("distill",)

    def __init__(self) -> None:
        self._teachers: dict[int, tuple[Any, Any]] = {}  # by the id of a module that is alive

    def parse(self, cfg: DictConfig) -> None:
        """Check `cfg.distill` and fill in its defaults, in place.

        Raises:
            ConfigError: an unknown key, a wrong type, or `method: distill`, which has a teacher.
        """
        from omegaconf import OmegaConf, open_dict

        section = cfg.get("distill")
        if section is None:
            return
        if cfg.get("method") == "distill":
            raise ConfigError(
                "method=distill has a teacher of its own (method_kwargs.teacher): leave the "
                "section distill out, or choose another method."
            )
        if OmegaConf.is_config(section):
            section = OmegaConf.to_container(section, resolve=True)
        if not isinstance(section, dict):
            raise ConfigError(f"distill={section!r}: expected keys, as in ++distill.teacher=RUN.")
        with open_dict(cfg):
            cfg.distill = asdict(fill(DistillConfig, section, "distill"))

    def losses(
        self, module: LightningModule, views: Sequence[Tensor], feats: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """`distill/<loss>`: the weighted mean distance over the views that have features."""
        cfg: Any = getattr(module, "cfg", None)
        section = None if cfg is None else cfg.get("distill")
        if section is None or not feats:
            return {}
        from solo.losses.distill import distill_loss_func

        teacher = self._teacher(module, section)
        pairs = list(zip(feats, views, strict=False))
        wanted = [teacher(view) for _, view in pairs]
        if wanted[0].shape[1] != feats[0].shape[1]:
            raise ConfigError(
                f"distill.teacher={section.teacher} puts out {wanted[0].shape[1]} features and "
                f"the encoder {feats[0].shape[1]}: beside another method both must be equal; "
                f"method=distill learns a projection between them."
            )
        total = sum(
            distill_loss_func(mine, theirs, section.loss)
            for (mine, _), theirs in zip(pairs, wanted, strict=True)
        )
        return {f"distill/{section.loss}": section.weight * total / len(pairs)}

    def _teacher(self, module: LightningModule, section: Any) -> Any:
        known = self._teachers.get(id(module))
        if known is None or known[0]() is not module:
            import weakref

            from omegaconf import OmegaConf

            from solo.data.catalogue import pretrain_statistics
            from solo.methods.teacher import Teacher

            cfg: Any = module.cfg
            entry = (cfg.get("augmentations") or [{}])[0]
            named: Any = OmegaConf.to_container(section.teacher_backbone) or None
            statistics = pretrain_statistics(cfg.data.dataset, entry)
            teacher = Teacher(section.teacher, named, *statistics)
            known = self._teachers[id(module)] = (weakref.ref(module), teacher)
        return known[1]
