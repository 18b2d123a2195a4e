# SPDX-License-Identifier: MIT
"""How a package changes a run without `solo` importing it.

An extension owns top-level sections of the configuration (`sparse`, `gating`). `solo` asks
the registered extensions at four moments: when a configuration is parsed, when an encoder has
been built, when callbacks are collected, and when an encoder is rebuilt from a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

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

    def finetune_callbacks(self, backbone: nn.Module) -> list[Callback]:
        """Lightning callbacks that keep `backbone` what it is while all its weights train."""
        return []

    def training_state(self, state: Mapping[str, Tensor]) -> set[str]:
        """Keys of `state` that only training needs, so that evaluation may leave them out."""
        return set()

    def describe(self, backbone: nn.Module) -> dict[str, float]:
        """Figures measured on `backbone` that an evaluation must state, such as its sparsity."""
        return {}


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
