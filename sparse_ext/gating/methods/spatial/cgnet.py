# SPDX-License-Identifier: MIT
"""CGNet (Hua et al. 2019) in self-supervised learning: one base path, own decisions per view.

Added to the method's loss: lambda sum_l ||tau_l - s||^2 (CDG's Eq. 11 without the root).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from solo.errors import ConfigError
from solo.utils.views import View
from sparse_ext.gating.branches import Pass
from sparse_ext.gating.config.spatial import TILE
from sparse_ext.gating.method import GatingMethod
from sparse_ext.gating.methods.spatial.conv import SpatialConv2d, gate_conv
from sparse_ext.gating.methods.spatial.paths import Pattern, diagonal
from sparse_ext.gating.residual import conv_norm_pairs, residual_blocks
from sparse_ext.masks.patching import PatchRule, apply


class CGNet(GatingMethod):
    """Every view takes the diagonal base path."""

    gated: ClassVar[tuple[str, ...]] = ("a1",)
    gate_options: ClassVar[Mapping[str, Any]] = {"weight_decay": 0.0, "exclude_bias_n_norm": True}

    def branch_of(self, view: View, epoch: int) -> str:
        """The branch of a view: every view goes through the gated one."""
        return "a1"

    def patterns(self) -> dict[str, Pattern]:
        """Which input channels each output channel's base path reads, by branch."""
        return {"a1": diagonal(self.config.groups)}

    def patch(self, backbone: nn.Module) -> Mapping[str, Any]:
        """Gate the 3x3 convolutions of the residual blocks, and those that are asked for."""
        names = self._convs(backbone)
        for name in names:
            self._check_shape(name, backbone.get_submodule(name))
        patterns = self.patterns()
        rule = PatchRule(
            self.config.name, nn.Conv2d, lambda m: gate_conv(m, self.config, patterns), names
        )
        return apply([rule], backbone)

    def _convs(self, backbone: nn.Module) -> tuple[str, ...]:
        names = []
        for name, block in residual_blocks(backbone, self.config.name).items():
            for conv, _ in conv_norm_pairs(block):
                shortcut = conv.startswith("downsample")
                single = block.get_submodule(conv).kernel_size == (1, 1)
                asked = self.config.gate_shortcut if shortcut else self.config.gate_1x1
                if asked or not (single or shortcut):
                    names.append(f"{name}.{conv}")
        return tuple(names)

    def _check_shape(self, name: str, conv: Any) -> None:
        groups = self.config.groups
        if conv.out_channels % groups or conv.in_channels % groups:
            raise ConfigError(
                f"gating.groups={groups} does not divide the channels of {name} "
                f"({conv.in_channels} in, {conv.out_channels} out): change gating.groups or "
                f"backbone.kwargs.width."
            )
        if self.config.structured and conv.out_channels // groups % TILE:
            raise ConfigError(
                f"gating.structured=true needs a multiple of {TILE} output channels per group, "
                f"and {name} has {conv.out_channels // groups} ({conv.out_channels} in {groups} "
                f"groups): lower gating.groups or widen the encoder."
            )

    def check(self, done: Pass, layers: Mapping[str, Any]) -> None:
        """Instance norm needs more than one place per channel."""
        for name, layer in layers.items():
            single = done.layers[name].macs_dense == layer.weight.numel()
            if single and self.config.norm == "instance":
                raise ConfigError(
                    f"gating.norm=instance: {name} has one place per channel at the size of the "
                    f"run's images, so nothing to normalise over. Set gating.norm=batch."
                )

    def check_views(self, sizes: Collection[int]) -> None:
        """One view's decisions fit no view of another size."""
        if self.config.unified and len(sizes) > 1:
            raise ConfigError(
                f"gating.unified=true needs views of one size, and these have "
                f"{' and '.join(map(str, sorted(sizes)))} pixels: leave out the small crops, or "
                f"set gating.unified=false."
            )

    def losses(self, gating: Any, module: Any, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """The regulariser of the thresholds, once per step."""
        apart = [layer.tau - self.config.threshold for layer in gating.layers.values()]
        sizes = torch.stack([tau.square().sum() for tau in apart])
        if self.config.reg == "l2":
            sizes = (sizes + 1e-12).sqrt()  # the root's slope is infinite at the target
        return {"threshold_loss": self.config.lamb * sizes.sum()}

    def figures(self, online: list[Pass], momentum: list[Pass]) -> dict[str, Tensor]:
        """S_c: similarity of the decisions for two views of an image (CDG, Fig. 4).

        The views that a loss compares: the first of the online encoder, and the second, of the
        momentum encoder where there is one.
        """
        others = momentum or online
        if not online or len(others) < 2:
            return {}
        one, two = online[0].layers, others[1].layers
        pairs = {name: (usage.masks, two[name].masks) for name, usage in one.items()}
        found = {
            f"mask_similarity/{name}": mask_similarity(a, b)
            for name, (a, b) in pairs.items()
            if a is not None and b is not None and a.shape == b.shape
        }
        if found:
            found["mask_similarity"] = torch.stack(list(found.values())).mean()
        return found

    def gate_parameters(self, backbone: nn.Module) -> Iterable[nn.Parameter]:
        """The thresholds: no weight decay, and LARS does not adapt their rate."""
        return (m.tau for m in backbone.modules() if isinstance(m, SpatialConv2d))


def mask_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two masks (N, C, H, W) along the channels, mean over images and places; 0-dim.

    Where either mask has nothing open, it is 0.
    """
    return F.cosine_similarity(a.detach().float(), b.detach().float(), dim=1).mean()
