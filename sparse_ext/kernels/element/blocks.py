# SPDX-License-Identifier: MIT
"""Residual blocks whose batch norms, sums and ReLUs are one pass each, in lanes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from sparse_ext.kernels.element.layers import _Convolution
from sparse_ext.kernels.element.norm import LaneBatchNorm2d, LaneReLU, norm


class _Block:
    """The steps that both kinds of block share."""

    def _plain(self, names: tuple[str, ...]) -> bool:
        """Whether nothing but this block looks at what its modules return."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        modules = [getattr(self, name) for name in names]
        if type(self.relu) is not nn.ReLU:  # type: ignore[attr-defined]
            return False
        if any(isinstance(m, nn.BatchNorm2d) and type(m) is not LaneBatchNorm2d for m in modules):
            return False
        modules += _children(self.downsample)  # type: ignore[attr-defined]
        return not any(_watched(m) for m in (*modules, self.relu))  # type: ignore[attr-defined]

    def _first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution with its batch norm, and x for the shortcut."""
        conv, bn = self.conv1, self.bn1  # type: ignore[attr-defined]
        if torch.is_grad_enabled() and isinstance(conv, _Convolution):
            out, x = conv.beside(x)
            return norm(out, bn, relu=True), x
        return conv_norm(x, conv, bn, relu=True), x

    def _shortcut(self, x: Tensor) -> Tensor:
        down: Any = self.downsample  # type: ignore[attr-defined]
        if down is None:
            return x
        if _is_pair(down):
            return conv_norm(x, down[0], down[1])
        return down(x)


class LaneBasicBlock(_Block, BasicBlock):
    """torchvision's block; made by `use_element_kernel`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._plain(("conv1", "bn1", "conv2", "bn2")):
            return super().forward(x)
        out, x = self._first(x)
        return conv_norm(out, self.conv2, self.bn2, self._shortcut(x), relu=True)


class LaneBottleneck(_Block, Bottleneck):
    """torchvision's block; made by `use_element_kernel`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._plain(("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")):
            return super().forward(x)
        out, x = self._first(x)
        out = conv_norm(out, self.conv2, self.bn2, relu=True)
        return conv_norm(out, self.conv3, self.bn3, self._shortcut(x), relu=True)


LANE_BLOCKS: dict[type, type] = {BasicBlock: LaneBasicBlock, Bottleneck: LaneBottleneck}


def conv_norm(
    x: Tensor, conv: nn.Module, bn: Any, residual: Tensor | None = None, relu: bool = False
) -> Tensor:
    """relu(bn(conv(x)) + residual); in eval mode without gradients the kernel does it all."""
    frozen = not bn.training and bn.running_mean is not None and not torch.is_grad_enabled()
    if frozen and isinstance(conv, _Convolution):
        plan = conv.chosen(x)
        if plan is not None:
            return conv.folded(x, plan, *conv.folds(bn), residual, relu)
    return norm(conv(x), bn, residual, relu)


def fuse(net: nn.Module) -> None:
    """Swap the residual blocks of `net`, and let a ResNet's stem rectify in its batch norm."""
    for module in net.modules():
        if type(module) in LANE_BLOCKS:
            module.__class__ = LANE_BLOCKS[type(module)]
        bn, relu = getattr(module, "bn1", None), getattr(module, "relu", None)
        if isinstance(module, ResNet) and type(bn) is LaneBatchNorm2d and type(relu) is nn.ReLU:
            bn.rectifies, relu.__class__ = True, LaneReLU  # type: ignore[assignment]


def unfuse(net: nn.Module) -> None:
    """Take out again what `fuse` has swapped."""
    plain = {new: old for old, new in LANE_BLOCKS.items()}
    for module in net.modules():
        if type(module) in plain:
            module.__class__ = plain[type(module)]
        elif type(module) is LaneReLU:
            module.__class__ = nn.ReLU  # type: ignore[assignment]
        elif type(module) is LaneBatchNorm2d:
            module.__dict__.pop("rectifies", None)


def _children(module: nn.Module | None) -> list[nn.Module]:
    return [] if module is None else list(module.modules())


def _is_pair(module: nn.Module) -> bool:
    return (
        type(module) is nn.Sequential
        and len(module) == 2
        and isinstance(module[0], nn.Conv2d)
        and type(module[1]) is LaneBatchNorm2d
    )


def _watched(m: nn.Module) -> bool:
    hooks = (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    return any(hooks)
