# SPDX-License-Identifier: MIT
"""How a package changes a run without `solo` importing it.

An extension owns top-level sections of the configuration (`sparse`, `gating`). `solo` asks
the registered extensions when a configuration is parsed, when an encoder has been built, when
callbacks and parameter groups are collected, in every training step, and when an encoder is
rebuilt from a checkpoint and evaluated.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.registry import Registry

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule
    from omegaconf import DictConfig
    from torch import Tensor, nn


class Extension:
    """Base class: every method is optional to override and does nothing by default.

    Attributes:
        sections: top-level configuration keys that belong to this extension.
    """

    sections: tuple[str, ...] = ()

    def schemas(self) -> Mapping[str, Mapping[str, type]]:
        """The dataclass with the keys of every method, by section and name; free of torch.

        `--help` lists them, and a misspelt key gets the nearest of them.
        """
        return {}

    def after_run(self, cfg: DictConfig, folder: Path) -> dict[str, str]:
        """Do something with a finished run, such as a report; lines for its end, by a word.

        Args:
            cfg: configuration of the run.
            folder: of the run.

        Raises:
            SoloError: it cannot be done; the run is told so, and is none the worse.
        """
        return {}

    def parse(self, cfg: DictConfig) -> None:
        """Check this extension's sections of `cfg` and fill in their defaults, in place.

        Raises:
            ConfigError: for an unknown key, a wrong type or values that contradict each other.
        """

    def patch_backbone(self, backbone: nn.Module, cfg: DictConfig) -> nn.Module:
        """Change a freshly built encoder (online or momentum) as `cfg` asks; return it."""
        return backbone

    def callbacks(self, module: LightningModule, cfg: DictConfig) -> list[Callback]:
        """Lightning callbacks that `module` needs while it trains."""
        return []

    def rebuild(
        self, backbone: nn.Module, state: Mapping[str, Tensor], checkpoint: Mapping[str, Any]
    ) -> nn.Module:
        """Give a plain encoder the modules that `state` (its weights, by encoder key) needs.

        Args:
            backbone: the encoder as its builder made it.
            state: the encoder's part of a checkpoint's state dict, without the `backbone.` prefix.
            checkpoint: everything else in the checkpoint file.
        """
        return backbone

    def initial_state(
        self, backbone: nn.Module, state: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """`state`, an encoder's weights from another run, as `backbone` is to start training from.

        Args:
            backbone: built and patched for the new run; may be changed in place to fit.
            state: by the encoder's own names.
        """
        return state

    def read(self, state: dict[str, Tensor]) -> None:
        """Unpack, in place, what a checkpoint holds in another form than the modules of a run.

        Args:
            state: its `state_dict`, of a run or of anybody else.

        Raises:
            CheckpointError: it is damaged.
        """

    def evaluated(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`state`, an encoder's weights as training stores them, as evaluation is to see them."""
        return state

    def folded(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`state`, as `evaluated` and without training state, for a model of another library.

        Nothing of this extension is left in it: the weights alone are what the encoder does.
        """
        return state

    def misfit(self, missing: Sequence[str], unexpected: Sequence[str]) -> str:
        """What to do where only tensors of this extension differ; empty where others do, too.

        Args:
            missing: tensors of the encoder that the file does not have.
            unexpected: tensors of the file that the encoder does not have.
        """
        return ""

    def before_resume(self, module: LightningModule, state: Mapping[str, Tensor]) -> None:
        """Look at the weights that `module` is about to continue from, by the module's keys.

        Raises:
            CheckpointError: they are of a run that this extension changed, and `module` is not.
        """

    def evaluation_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments of evaluations without a configuration (kNN, UMAP)."""

    def evaluation_settings(self, args: Namespace) -> dict[str, Any]:
        """The sections for `after_load` that those arguments mean."""
        return {}

    def after_load(self, backbone: nn.Module, cfg: DictConfig) -> None:
        """Make an encoder that was loaded from a checkpoint do what the evaluation `cfg` asks."""

    def finetune_callbacks(self, backbone: nn.Module) -> list[Callback]:
        """Lightning callbacks that keep `backbone` what it is while all its weights train."""
        return []

    def losses(
        self, module: LightningModule, views: Sequence[Tensor], feats: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """Terms to add to the training loss of this step, by the names they are logged under.

        Called once per training step, when `module.backbone` has encoded its `views` (each
        (N, 3, H, W)), whether or not this extension's section is there. `feats` are its features
        (N, F) of the first views.
        """
        return {}

    def parameter_groups(
        self, backbone: nn.Module, group: Mapping[str, Any]
    ) -> list[Mapping[str, Any]]:
        """`group`, which holds parameters of `backbone`, in parts with options of their own."""
        return [group]

    def training_state(self, state: Mapping[str, Tensor]) -> set[str]:
        """Keys of `state` that only training needs, so that evaluation may leave them out."""
        return set()

    def runs_uncompiled(self, backbone: nn.Module) -> str:
        """Why `backbone` must not go through `torch.compile`; empty where it may."""
        return ""

    def tells_views_apart(self, backbone: nn.Module) -> bool:
        """Whether `backbone` does other things in one view of a training step than in another."""
        return False

    def figures_of_epoch(self, metrics: Mapping[str, float]) -> list[str]:
        """What the line of an epoch says of this extension, from the metrics logged last."""
        return []

    def next_steps(self, folder: Path) -> dict[str, str]:
        """What one can do with the finished run in `folder`: a few words -> the command."""
        return {}

    def compare_runs(self, folders: Sequence[Path]) -> dict[str, Path]:
        """Write a comparison of finished runs: a few words -> the file."""
        return {}

    def describe(self, backbone: nn.Module) -> dict[str, float]:
        """Figures measured on `backbone` that an evaluation must state, such as its sparsity."""
        return {}

    def collect(self, backbone: nn.Module) -> dict[str, float]:
        """Figures of the passes that `backbone` has made, unannounced, since the last call."""
        return {}


#: safetensors files that hold more than plain tensors: `format` of their metadata -> reader, which
#: gives the file's tensors by the encoder's names
WEIGHT_FORMATS: Registry[Callable[[Path], dict[str, Tensor]]] = Registry("weight file format")

#: files that hold a whole encoder: suffix -> function from its path to the encoder, which brings
#: its `preprocess`
ENCODER_FILES: Registry[Callable[[Path], nn.Module]] = Registry("file of an encoder")

_EXTENSIONS: dict[str, Extension] = {}
_discovered = False


def register(extension: Extension) -> None:
    """Make `extension` known; registering the same class again changes nothing."""
    _EXTENSIONS.setdefault(type(extension).__qualname__, extension)


def registered() -> list[Extension]:
    """All extensions: those registered by hand and those of installed packages."""
    global _discovered
    if not _discovered:
        _discovered = True
        for entry in entry_points(group="solo.extensions"):
            entry.load()()
    return list(_EXTENSIONS.values())


def sections() -> set[str]:
    """Top-level configuration keys that some extension owns."""
    return {section for extension in registered() for section in extension.sections}


def active(cfg: DictConfig) -> list[Extension]:
    """The extensions that `cfg` turns on: those with a section that is present and not null."""
    return [e for e in registered() if any(cfg.get(section) is not None for section in e.sections)]


def losses(
    module: LightningModule, views: Sequence[Tensor], feats: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """The terms that all extensions add to the training loss of this step."""
    terms: dict[str, Tensor] = {}
    for extension in registered():
        terms |= extension.losses(module, views, feats)
    return terms


def parameter_groups(backbone: nn.Module, **options: Any) -> list[Mapping[str, Any]]:
    """All parameters of `backbone` as groups for the optimizer, most of them in the first.

    Args:
        backbone: the encoder.
        **options: keys of the group, such as its name.
    """
    groups: list[Mapping[str, Any]] = [{**options, "params": list(backbone.parameters())}]
    for extension in registered():
        groups = [part for group in groups for part in extension.parameter_groups(backbone, group)]
    return groups


def evaluated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights as all extensions want evaluation to see them."""
    for extension in registered():
        state = extension.evaluated(state)
    return dict(state)


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights without anything that an extension needs."""
    for extension in registered():
        state = extension.folded(state)
    return dict(state)


def evaluation_settings(args: Namespace) -> dict[str, Any]:
    """What the command line of an evaluation asks of all extensions, by their sections."""
    return {key: value for e in registered() for key, value in e.evaluation_settings(args).items()}


def collect(backbone: nn.Module) -> dict[str, float]:
    """What all extensions have measured in unannounced passes since the last call."""
    return {name: value for e in registered() for name, value in e.collect(backbone).items()}


def tells_views_apart(backbone: nn.Module) -> bool:
    """Whether some extension makes `backbone` treat views differently in a training step."""
    return any(extension.tells_views_apart(backbone) for extension in registered())


def runs_uncompiled(backbone: nn.Module) -> str:
    """The first extension's reason why `backbone` must not be compiled; empty where it may."""
    return next(filter(None, (e.runs_uncompiled(backbone) for e in registered())), "")
