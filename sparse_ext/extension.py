# SPDX-License-Identifier: MIT
"""What makes `+sparse=NAME` work behind every configuration, and `sparsify` on any module.

`register` makes both extensions known: masks (here) and gates (`sparse_ext.gating`).

Importing this module does not import torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo import extensions
from solo.errors import CheckpointError
from solo.files.run_args import read_args
from solo.monitoring.console import command
from sparse_ext.config import reading
from sparse_ext.config import sections as schema
from sparse_ext.distill import DistillExtension
from sparse_ext.gating.config import sections as gating
from sparse_ext.gating.extension import GatingExtension

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from sparse_ext.training.callback import PruningCallback

TRAINING_ONLY = ("shadow", "score", "shadow_packed", "score_packed")


class SparseExtension(extensions.Extension):
    """Masked encoders (`sparse:`) for every method of `solo`."""

    sections = ("sparse",)

    def schemas(self) -> Mapping[str, Mapping[str, type]]:
        """The settings of every pruning method."""
        return {"sparse": dict(schema.METHODS)}

    def after_run(self, cfg: DictConfig, folder: Path) -> dict[str, str]:
        """Write report.html where the run asks for it (`report=True`)."""
        if not cfg.get("report"):
            return {}
        from solo.registry import resolve

        return {"report": str(resolve("sparse_ext.report.one_run:write_report")(folder))}

    def parse(self, cfg: DictConfig) -> None:
        """Check `cfg.sparse` and fill in its defaults, in place; None or absent means dense.

        Raises:
            ConfigError: see `sparse_ext.config.build`.
        """
        from omegaconf import open_dict

        config = _config(cfg)
        if config is not None:
            with open_dict(cfg):
                cfg.sparse = schema.to_dict(config)

    def patch_backbone(self, backbone: nn.Module, cfg: DictConfig) -> nn.Module:
        """Put masks (all ones) on the prunable layers of an encoder; weights are untouched."""
        config = _config(cfg)
        if config is None:
            return backbone
        from sparse_ext.masks.masking import patch

        return patch(backbone, config)

    def callbacks(self, module: LightningModule, cfg: DictConfig) -> list[Callback]:
        """The pruning callback of `module`: one per module, however often it is asked for."""
        config = _config(cfg)
        if config is None:
            return []
        from sparse_ext.training.attach import callback_of

        callback = callback_of(module, config, seed=cfg.get("seed"))
        callback.pack = bool((cfg.get("checkpoint") or {}).get("pack"))
        return [callback]

    def rebuild(
        self, backbone: nn.Module, state: Mapping[str, Tensor], checkpoint: Mapping[str, Any]
    ) -> nn.Module:
        """Put masks on exactly those layers whose `<name>.mask` is in `state`.

        Where the result of a method whose weights live on is the dense network, it gets none. A
        slimmed encoder gets the widths that it has in `state`.

        Raises:
            CheckpointError: if `state` masks a layer that this encoder does not have, or its masks
                are not of the N:M pattern that its run was given.
        """
        from sparse_ext.compat import unwrapped
        from sparse_ext.masks.channels.widths import MARK, resize_
        from sparse_ext.masks.living_weights import evaluated_masked
        from sparse_ext.masks.masking import check_pattern, patch_named

        alive = evaluated_masked(state)
        masked = [key.removesuffix(".mask") for key in state if key.endswith(".mask")]
        backbone = patch_named(backbone, [name for name in masked if alive.get(name, True)])
        if MARK in state:
            resize_(unwrapped(backbone), state)
        check_pattern(state, checkpoint)
        if masked:
            from sparse_ext.kernels.element.frozen import Faster

            backbone.faster = Faster(backbone)  # type: ignore[assignment]
        return backbone

    def initial_state(
        self, backbone: nn.Module, state: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Masks go on where this run has masked layers, and become plain zeros elsewhere.

        A slimmed encoder gives `backbone` its widths.
        """
        from sparse_ext.masks.living_weights import evaluated
        from sparse_ext.masks.masking import initial_state

        return initial_state(backbone, evaluated(state), self.training_state(state))

    def read(self, state: dict[str, Tensor]) -> None:
        """Checkpoints hold masks as bits, which become masks again."""
        from sparse_ext.masks.packing import unpack_masks_

        unpack_masks_(state)

    def evaluated(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Where weights live on under their masks: those that evaluation prunes become zero."""
        from sparse_ext.masks.living_weights import evaluated

        return evaluated(state)

    def folded(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights with zeros where their masks have them, and no masks."""
        from sparse_ext.masks.masking import folded

        return folded(state)

    def misfit(self, missing: Sequence[str], unexpected: Sequence[str]) -> str:
        """A dense file for a masked encoder."""
        if unexpected or not all(key.endswith(".mask") for key in missing):
            return ""
        return (
            "The checkpoint is dense and the encoder is masked: remove the sparse section of the "
            "configuration, or give the checkpoint of the sparse run."
        )

    def before_resume(self, module: LightningModule, state: Mapping[str, Tensor]) -> None:
        """A dense run does not continue a sparse one.

        Raises:
            CheckpointError: `state` has masks that `module` has not.
        """
        masks = {key for key in state if key.startswith("backbone.") and key.endswith(".mask")}
        if masks - set(module.state_dict()):
            raise CheckpointError(
                "The checkpoint is of a sparse run (it has masks), but this run is dense. Add the "
                "sparse section that is in the checkpoint's args.json, e.g. +sparse=synccp."
            )

    def finetune_callbacks(self, backbone: nn.Module) -> list[Callback]:
        """Masks stay as they are while a sparse encoder is fine-tuned (SyncCP, Table 8)."""
        from sparse_ext.masks.masked_layers import Masked
        from sparse_ext.training.fixed_masks import FixedMasks

        return [FixedMasks()] if any(isinstance(m, Masked) for m in backbone.modules()) else []

    def training_state(self, state: Mapping[str, Tensor]) -> set[str]:
        """What only training reads: shadows, scores, the branch that is not evaluated."""
        from sparse_ext.masks.living_weights import training_only

        masked = {key.removesuffix("mask") for key in state if key.endswith(".mask")}
        beside = {prefix + name for prefix in masked for name in TRAINING_ONLY} & set(state)
        return beside | training_only(state)

    def runs_uncompiled(self, backbone: nn.Module) -> str:
        """Layers with living weights choose their mask by the view; stored zeros may compile."""
        from sparse_ext.masks.living_weights import Functional

        living = any(isinstance(module, Functional) for module in backbone.modules())
        return "its sparse layers choose a mask for every view" if living else ""

    def tells_views_apart(self, backbone: nn.Module) -> bool:
        """Layers with living weights choose their mask by the view; stored zeros do not."""
        return bool(self.runs_uncompiled(backbone))

    def figures_of_epoch(self, metrics: Mapping[str, float]) -> list[str]:
        """Sparsity of each encoder by name."""
        names = {"online": "sparse/online_sparsity", "momentum": "sparse/momentum_sparsity"}
        found = [f"{n} {100 * metrics[key]:.1f}%" for n, key in names.items() if key in metrics]
        return [f"sparsity {' / '.join(found)}"] if found else []

    def next_steps(self, folder: Path) -> dict[str, str]:
        """The report of the run, and a small file of its encoder."""
        report, export = (command(n, f"python3 -m sparse_ext.{n}") for n in ("report", "export"))
        form = "packed" if (read_args(folder) or {}).get("sparse") else "dense"
        run = shlex.quote(str(folder))
        return {"report": f"{report} {run}", "export": f"{export} {form} {run}"}

    def compare_runs(self, folders: Sequence[Path]) -> dict[str, Path]:
        """One page about all of them, in the folder that holds them all."""
        pages = import_module("sparse_ext.report.several_runs")  # stands above this room
        return {"comparison": pages.write_comparison(folders, pages.page_for(folders))}

    def describe(self, backbone: nn.Module) -> dict[str, float]:
        """Measured sparsity of `backbone`: over its prunable set, and over all its weights.

        Returns:
            `sparsity`, `backbone_sparsity`, `prunable_weights`, `kept_weights`; nothing if dense.

        Raises:
            CheckpointError: if a weight under a zero of its mask is not zero.
        """
        from sparse_ext.masks.masking import measured

        return measured(backbone)


def register() -> None:
    """Make the extensions and their Hydra groups known; twice changes nothing.

    Gates go in before masks: masks then see which convolutions belong to gates, and stay off.
    """
    extensions.register(GatingExtension())
    extensions.register(SparseExtension())
    extensions.register(DistillExtension())
    gating.store()
    schema.store()
    extensions.WEIGHT_FORMATS.register(
        "sparse_ext.packed/1", "sparse_ext.export.packed:load_packed"
    )
    extensions.WEIGHT_FORMATS.register("sparse_ext.csr/1", "sparse_ext.export.csr:load_dense")
    extensions.ENCODER_FILES.register(".onnx", "sparse_ext.export.onnx:open_onnx")


def enable(cfg: DictConfig) -> DictConfig:
    """Check the sections of a run's configuration and register the extensions.

    Args:
        cfg: a configuration with `sparse: synccp` or `gating: {name: vicreg_dual, budget: 0.3}`.

    Returns:
        The same object, its sections complete.
    """
    register()
    for extension in (GatingExtension(), SparseExtension()):
        extension.parse(cfg)
    return cfg


def sparsify(
    module: LightningModule,
    config: str | Mapping[str, Any] | schema.SparseConfig,
    online: str = "backbone",
    momentum: str | None = None,
) -> PruningCallback:
    """Make a built LightningModule train sparse: `sparse_ext.sparsify(model, "synccp")`.

    Masks go on the encoder and, if there is one, on its momentum encoder. The callback joins the
    module's own `configure_callbacks`, so it acts whether or not the Trainer is given it.

    Args:
        module: any LightningModule with an encoder. It may update its momentum encoder through
            `module.momentum_updater`, as the methods of solo do, in `on_train_batch_end`, or within
            `training_step`, as lightly's examples do.
        config: a method's name, a mapping with `name`, or one of `sparse_ext.config`'s classes.
        online: name of the encoder that trains; dots lead to parts of parts.
        momentum: name of its EMA copy. Left out: `momentum_backbone`, or an equal network whose
            name says what it is (`backbone_momentum`, `teacher`, `target_encoder`, ...).

    Raises:
        ConfigError: there is no such encoder, or several networks could be the EMA copy. A frozen
            equal network whose name does not say what it is gets a warning.
    """
    from sparse_ext.training.attach import attach

    return attach(module, schema.build(config), online, momentum)


_built: dict[str, schema.SparseConfig] = {}  # of this process, by the section's text


def _config(cfg: DictConfig) -> schema.SparseConfig | None:
    """The checked configuration of `cfg.sparse`, made when it is first asked for."""
    section = reading.plain(cfg.get("sparse"))
    if section is None:
        return None
    text = repr(section)
    if text not in _built:
        config = schema.build(section)
        _built[text] = _built[repr(schema.to_dict(config))] = config  # as `parse` leaves it
    return _built[text]
