# SPDX-License-Identifier: MIT
"""Putting gates into an encoder, and finding them again.

A gated encoder describes itself: the buffer `gating_config` (JSON as bytes) among its weights says
which method with which settings its gates belong to, so that a checkpoint can be rebuilt without
any configuration beside it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from solo.backbones import input_channels
from solo.errors import CheckpointError, ConfigError
from sparse_ext.compat import unwrapped
from sparse_ext.config.reading import to_dict
from sparse_ext.gating.branches import BranchContext, Pass
from sparse_ext.gating.config.sections import GatingConfig, build
from sparse_ext.gating.method import Gated, GatingMethod, method_of
from sparse_ext.gating.two_encoders import TwoEncoders

CONFIG_KEY = "gating_config"


class GateConv2d(nn.Conv2d):
    """A convolution inside of a gate. A type of its own, so that no mask is ever put on it."""


class Gating:
    """What belongs to a gated encoder beside its modules: its `gating` attribute.

    Attributes:
        method: the gating method.
        context: branches and passes.
        layers: the gated layers by name.
    """

    def __init__(self, method: GatingMethod, context: BranchContext, layers: Mapping[str, Gated]):
        self.method = method
        self.context = context
        self.layers = layers

    @property
    def config(self) -> GatingConfig:
        """The settings, with the branch that is chosen now."""
        return replace(self.method.config, eval=self.context.evaluation)


def gating_of(backbone: nn.Module | None) -> Gating | None:
    """The gating of an encoder; None if it has no gates."""
    return None if backbone is None else getattr(unwrapped(backbone), "gating", None)


def patch(
    backbone: nn.Module, config: GatingConfig, another: Callable[[], nn.Module] | None = None
) -> nn.Module:
    """Put the gates of `config` into an encoder.

    Args:
        backbone: a plain encoder, changed in place.
        config: the method and its settings.
        another: builds a plain encoder of the same architecture, for methods with two; by default
            that is a copy of `backbone`.

    Returns:
        the encoder, or for methods with two a module around both.

    Raises:
        ConfigError: if it has gates already, or nothing in it can be gated.
    """
    if gating_of(backbone) is not None:
        raise ConfigError("This encoder has gates already: gate it once only.")
    method = method_of(config)
    if method.two_encoders:
        second = copy.deepcopy(backbone) if another is None else another()
        backbone = TwoEncoders(backbone, second)
    layers = method.patch(backbone)
    context = BranchContext(config.BRANCHES, config.eval, method.branch_of)
    for name, layer in layers.items():
        layer.name, layer.context = name, context
    _count_plain(backbone, method, layers, context)
    backbone.register_forward_pre_hook(context.begin)
    backbone.register_forward_hook(context.end)
    backbone.register_buffer(CONFIG_KEY, _encode(config))
    backbone.register_load_state_dict_pre_hook(_adopt)
    backbone.gating = Gating(method, context, layers)  # type: ignore[assignment]
    return backbone


def rebuild(backbone: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give an encoder the gates that `state` (its weights) was trained with, random so far.

    Raises:
        CheckpointError: it has gates of other settings, or gates and `state` has none.
    """
    gating = gating_of(backbone)
    if CONFIG_KEY not in state:
        if gating is not None:
            raise CheckpointError(
                "The checkpoint's encoder has no gates, but this run asks for some: remove the "
                "gating section, or give the checkpoint of a gated run."
            )
        return backbone
    stored = _decode(state[CONFIG_KEY])
    if gating is None:
        return patch(backbone, stored)
    _check_same(stored, gating.config)
    setattr(backbone, CONFIG_KEY, state[CONFIG_KEY].clone())  # its length may differ by `eval`
    return backbone


def trace(backbone: nn.Module, size: int) -> Pass:
    """What one pass of a square image costs, from shapes alone (a copy on the meta device)."""
    twin = copy.deepcopy(backbone).to("meta").eval()
    twin(torch.empty(1, input_channels(twin), size, size, device="meta"))
    return gating_of(twin).context.tape[None]  # type: ignore[union-attr]


def choose(backbone: nn.Module, branch: str) -> nn.Module:
    """Let `backbone` take `branch` in every pass that no training step has announced.

    Raises:
        ConfigError: the encoder has no gates, or no such branch.
    """
    gating = gating_of(backbone)
    if gating is None:
        raise ConfigError(f"gating.eval={branch!r}: this encoder has no gates.")
    gating.context.choose(branch)
    buffer: Tensor = getattr(backbone, CONFIG_KEY)
    setattr(backbone, CONFIG_KEY, _encode(gating.config).to(buffer.device))
    return backbone


class _Counter:
    """Forward hook that reports the MACs of a convolution outside of the gated layers."""

    def __init__(self, name: str, context: BranchContext) -> None:
        self.name = name
        self.context = context

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.context.record_plain(self.name, conv_macs(module, output))


def conv_macs(conv: nn.Conv2d, output: Tensor) -> int:
    """Multiply-accumulates per image of a convolution with this output (N, C, H, W)."""
    return conv.weight.numel() * output.shape[-2] * output.shape[-1]


def _count_plain(
    backbone: nn.Module,
    method: GatingMethod,
    layers: Mapping[str, Gated],
    context: BranchContext,
) -> None:
    own = {id(conv) for layer in layers.values() for conv in layer.own_convs()}
    for name, module in backbone.named_modules():
        plain = isinstance(module, nn.Conv2d) and not isinstance(module, GateConv2d)
        if plain and id(module) not in own and method.counts(name):
            module.register_forward_hook(_Counter(name, context))


def _encode(config: GatingConfig) -> Tensor:
    text = json.dumps(to_dict(config), sort_keys=True)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _decode(data: Tensor) -> GatingConfig:
    try:
        return build(json.loads(bytes(data.tolist()).decode()))
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"The checkpoint's gating cannot be rebuilt here: {error}") from error


def _check_same(stored: GatingConfig, own: GatingConfig) -> None:
    old, new = to_dict(stored), to_dict(own)
    for key in sorted((old.keys() | new.keys()) - {"eval"}):
        if old.get(key) != new.get(key) and new.get(key) != "auto":
            raise CheckpointError(
                f"gating.{key} is {new.get(key)!r} here, but the checkpoint was made with "
                f"{old.get(key)!r}: set gating.{key}={old.get(key)} (evaluation can leave the "
                f"section out: it is in the checkpoint)."
            )


def _adopt(backbone: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: gates and settings must fit; the branch that is chosen here stays."""
    key = prefix + CONFIG_KEY
    if key not in state:
        if any(name.startswith(prefix) for name in state):
            raise CheckpointError(
                f"These weights{f' ({prefix}*)' if prefix else ''} are of an encoder without "
                f"gates, but this model is gated: leave out the gating section, or start from a "
                f"checkpoint of a gated run."
            )
        return
    own = gating_of(backbone)
    if own is not None:
        _check_same(_decode(state[key]), own.config)
        encoded = _encode(own.config)
        setattr(backbone, CONFIG_KEY, encoded.to(getattr(backbone, CONFIG_KEY).device))
        state[key] = encoded
