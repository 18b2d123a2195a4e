# SPDX-License-Identifier: MIT
"""What makes `+gating=NAME` work behind every configuration whose encoder can be gated.

Importing this module does not import torch.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from solo import extensions
from solo.errors import CheckpointError, ConfigError
from sparse_ext.config import reading
from sparse_ext.gating.config import sections as settings

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule
    from omegaconf import DictConfig
    from torch import Tensor, nn

EVALUATION_KEY = "pretrained_feature_extractor"  # only evaluations have it


class GatingExtension(extensions.Extension):
    """Gated encoders (`gating:`) for every method of `solo`."""

    sections = ("gating",)

    def schemas(self) -> Mapping[str, Mapping[str, type]]:
        """The settings of every gating method."""
        return {"gating": dict(settings.METHODS)}

    def parse(self, cfg: DictConfig) -> None:
        """Check `cfg.gating` and fill in its defaults, in place; None or absent means no gates.

        An evaluation may have only `gating.eval`, the branch to evaluate: the rest is in the
        checkpoint.

        Raises:
            ConfigError: see `sparse_ext.gating.config.build`.
        """
        from omegaconf import open_dict

        section = reading.plain(cfg.get("gating"))
        if section is None or _only_eval(section, cfg):
            return
        config = settings.build(section)
        if cfg.get("method") is not None:
            config = config.for_run(_has_momentum_encoder(cfg.method))
        obstacle = config.obstacle_to_masks()
        if obstacle and cfg.get("sparse") is not None:
            raise ConfigError(f"sparse and gating={config.name} together: {obstacle}")
        if removing := _removes_channels(cfg.get("sparse")):
            raise ConfigError(
                f"sparse.{removing} removes whole channels, and the gates of gating={config.name} "
                f"are built for all of them: leave sparse.{removing} out."
            )
        with open_dict(cfg):
            cfg.gating = reading.to_dict(config)

    def patch_backbone(self, backbone: nn.Module, cfg: DictConfig) -> nn.Module:
        """Put the gates of `cfg.gating` into a freshly built encoder.

        Raises:
            ConfigError: it cannot be gated, or not as asked at the size of the run's images.
        """
        section = reading.plain(cfg.get("gating"))
        if section is None or _only_eval(section, cfg):
            return backbone
        from sparse_ext.gating.encoder import gating_of, patch, trace

        backbone = patch(backbone, settings.build(section), lambda: _without_gates(cfg))
        if cfg.get("augmentations"):
            gating, done = gating_of(backbone), trace(backbone, cfg.augmentations[0].crop_size)
            gating.method.check(done, gating.layers)  # type: ignore[union-attr]
            sizes = {view.crop_size for view in cfg.augmentations}
            gating.method.check_views(sizes)  # type: ignore[union-attr]
        return backbone

    def callbacks(self, module: LightningModule, cfg: DictConfig) -> list[Callback]:
        """The gating callback of `module`: one per module, however often it is asked for."""
        if cfg.get("gating") is None:
            return []
        from sparse_ext.gating.callback import callback_of

        return [callback_of(module)]

    def rebuild(
        self, backbone: nn.Module, state: Mapping[str, Tensor], checkpoint: Mapping[str, Any]
    ) -> nn.Module:
        """Give a plain encoder the gates that `state` was trained with.

        Raises:
            CheckpointError: it has other gates already.
        """
        from sparse_ext.gating.encoder import rebuild

        return rebuild(backbone, state)

    def before_resume(self, module: LightningModule, state: Mapping[str, Tensor]) -> None:
        """A run without gates does not continue a gated one.

        Raises:
            CheckpointError: `state` has gates and `module` has none.
        """
        from sparse_ext.gating.encoder import CONFIG_KEY

        if f"backbone.{CONFIG_KEY}" in set(state) - set(module.state_dict()):
            raise CheckpointError(
                "The checkpoint is of a gated run, but this run has no gates. Add the gating "
                "section that is in the checkpoint's args.json, e.g. +gating=vicreg_dual."
            )

    def evaluation_arguments(self, parser: ArgumentParser) -> None:
        """Add `--gating_eval BRANCH` to the command line of an evaluation."""
        parser.add_argument(
            "--gating_eval",
            metavar="BRANCH",
            help="branch of a gated encoder, such as gated or dense; default: as trained",
        )

    def evaluation_settings(self, args: Namespace) -> dict[str, Any]:
        """The section `gating` with the branch of `--gating_eval`, where it is given."""
        branch = getattr(args, "gating_eval", None)
        return {} if branch is None else {"gating": {"eval": branch}}

    def after_load(self, backbone: nn.Module, cfg: DictConfig) -> None:
        """Choose the branch `cfg.gating.eval` of an encoder that comes from a checkpoint.

        Raises:
            ConfigError: the encoder has no gates, or no such branch.
        """
        section = reading.plain(cfg.get("gating"))
        if section is not None:
            from sparse_ext.gating.encoder import choose

            choose(backbone, section["eval"])

    def finetune_callbacks(self, backbone: nn.Module) -> list[Callback]:
        """Gates stay at work, and their losses at their final targets, in fine-tuning."""
        from sparse_ext.gating.encoder import gating_of

        if gating_of(backbone) is None:
            return []
        from sparse_ext.gating.callback import FineTuning

        return [FineTuning()]

    def losses(
        self, module: LightningModule, views: Sequence[Tensor], feats: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """The losses that a gating method adds, by name as `gating/<name>`."""
        from sparse_ext.gating.step import losses

        return losses(module, views)

    def runs_uncompiled(self, backbone: nn.Module) -> str:
        """Gates choose a branch for every view and keep a record of it."""
        from sparse_ext.gating.encoder import gating_of

        return "" if gating_of(backbone) is None else "its gates choose a branch for every view"

    def tells_views_apart(self, backbone: nn.Module) -> bool:
        """Gates choose a branch for every view, so that views must come one by one."""
        return bool(self.runs_uncompiled(backbone))

    def parameter_groups(
        self, backbone: nn.Module, group: Mapping[str, Any]
    ) -> list[Mapping[str, Any]]:
        """The encoder's group, and one of its gates with options of their own."""
        from sparse_ext.gating.step import parameter_groups

        return parameter_groups(backbone, group)

    def figures_of_epoch(self, metrics: Mapping[str, float]) -> list[str]:
        """Multiply-accumulates that the gates left, over those of the dense encoder."""
        names = [n for n in metrics if n.startswith("gating/") and n.endswith("rho")]
        measured = [n for n in names if n == "gating/val_rho"] or names[:1]
        return [f"MACs {100 * metrics[name]:.1f}% of dense" for name in measured]

    def collect(self, backbone: nn.Module) -> dict[str, float]:
        """Reduction of MACs on the images that `backbone` has evaluated since the last call.

        Returns:
            `flops_reduction` (1 - rho), `rho`, `macs_effective` and `macs_dense` per image (MACs
            are counted, not timed), and figures of single layers as `<figure>/<layer>`; nothing
            without gates.
        """
        from sparse_ext.gating.encoder import gating_of

        gating = gating_of(backbone)
        return {} if gating is None else gating.context.collect()


def _removes_channels(sparse: Any) -> str:
    """The key of `sparse` that asks for smaller tensors; empty if none does."""
    section = reading.plain(sparse)
    if not isinstance(section, Mapping):
        return ""
    keys = ("coupled", "slim_at")
    return next((key for key in keys if section.get(key) not in (None, False)), "")


def _has_momentum_encoder(method: str) -> bool:
    """Whether `method` has one; a name that does not exist is reported elsewhere."""
    from solo.methods import METHODS
    from solo.methods.base_momentum import BaseMomentumMethod

    return issubclass(METHODS.get(method, object), BaseMomentumMethod)


def _without_gates(cfg: DictConfig) -> nn.Module:
    """Another encoder of the run, with weights of its own."""
    from solo.backbones import build_encoder

    plain = cfg.copy()
    plain.gating = None
    return build_encoder(plain)


def _only_eval(section: Any, cfg: DictConfig) -> bool:
    """Whether an evaluation's section says nothing but which branch to evaluate."""
    if EVALUATION_KEY not in cfg or not isinstance(section, Mapping) or "name" in section:
        return False
    if set(section) != {"eval"} or not isinstance(section["eval"], str):
        raise ConfigError(
            "gating: an evaluation needs only gating.eval (the branch to evaluate, such as gated "
            "or dense); everything else is in the checkpoint."
        )
    return True
