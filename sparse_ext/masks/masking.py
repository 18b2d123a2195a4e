# SPDX-License-Identifier: MIT
"""Masks go on an encoder: which layers get one, by rule or by name, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import CheckpointError, ConfigError, did_you_mean
from sparse_ext.compat import forget_hooks_before_loading, hooks_before_loading, unwrapped
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks import packing
from sparse_ext.masks import patching as patching
from sparse_ext.masks.channels.widths import MARK, resize_
from sparse_ext.masks.encoder import SIDE_BUFFERS, Encoder, _add_buffer, masked_layers
from sparse_ext.masks.granularity import NM, parse
from sparse_ext.masks.masked_layers import MASKED_TYPES, Masked
from sparse_ext.masks.prunable import Selection, select


def patch(backbone: nn.Module, config: SparseConfig) -> nn.Module:
    """Put masks (all ones) on the layers of `backbone` that `config` makes prunable.

    Raises:
        ConfigError: if it has masks already, or no layer is prunable.
    """
    if masked_layers(backbone):
        raise ConfigError("This encoder has masks already: make it sparse once only.")
    return _mask(backbone, selection(backbone, config).layers)


def selection(backbone: nn.Module, config: SparseConfig) -> Selection:
    """Which layers of an encoder `config` makes prunable, and why the others stay dense."""
    granularity, obstacle = parse(config.spelling), config.obstacle
    net = unwrapped(backbone)
    return select(net, config.stem_dense, config.exclude, granularity, obstacle)


def patch_named(backbone: nn.Module, names: Iterable[str]) -> nn.Module:
    """Put masks on the layers called `names` that have none yet.

    Raises:
        CheckpointError: if the encoder has no such layer.
    """
    modules = dict(unwrapped(backbone).named_modules())
    for name in names:
        if type(modules.get(name)) not in (*MASKED_TYPES, *MASKED_TYPES.values()):
            raise CheckpointError(
                f"The checkpoint has a mask for '{name}', which is no convolution or linear layer "
                f"of this {type(backbone).__name__}. It belongs to another architecture: set "
                f"backbone.name and backbone.kwargs as in training. {did_you_mean(name, modules)}"
            )
    return _mask(backbone, [n for n in names if not isinstance(modules[n], Masked)])


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An encoder's weights with zeros under the zeros of its masks, and without the masks."""
    masks = {k for k in state if k.endswith(".mask") and k[: -len("mask")] + "weight" in state}
    found = {key: value for key, value in state.items() if key not in masks}
    for key in masks:
        weight = key[: -len("mask")] + "weight"
        found[weight] = found[weight].masked_fill(~state[key].bool(), 0)
    return found


def initial_state(
    backbone: nn.Module, state: Mapping[str, Tensor], training: Iterable[str]
) -> dict[str, Tensor]:
    """Weights of another run as `backbone` may load them to start from.

    Args:
        backbone: patched for the new run; takes over the widths of a slimmed encoder.
        state: by the encoder's names, masks included.
        training: keys that only the other run's training needed.
    """
    net = unwrapped(backbone)
    if MARK in state:
        resize_(net, state)
    layers = masked_layers(backbone)
    result = {key: value for key, value in state.items() if key not in set(training)}
    for key in [key for key in result if key.endswith(".mask")]:
        name, mask = key.removesuffix(".mask"), result.pop(key).bool()
        if (weight := f"{name}.weight") in result:
            result[weight] = result[weight].masked_fill(~mask, 0)
        if name in layers:
            result[key] = mask
    for name, layer in layers.items():
        result.setdefault(f"{name}.mask", torch.ones_like(layer.mask))
    return result


def measured(backbone: nn.Module) -> dict[str, float]:
    """Sparsity of an encoder, from its masks; nothing for a dense one.

    Returns:
        `sparsity` over the prunable set, `backbone_sparsity` over the weights of all convolutions
        and linear layers, `prunable_weights`, `kept_weights`.

    Raises:
        CheckpointError: if a weight under a zero of its mask is not zero.
    """
    if not masked_layers(backbone):
        return {}
    encoder = Encoder(backbone)
    for name, layer in encoder.layers.items():
        if layer.weight.detach()[~layer.mask].any():
            raise CheckpointError(
                f"The mask of '{name}' has no effect: weights under its zeros are not zero. "
                f"Load weights and masks from the same checkpoint."
            )
    n, kept = encoder.masks.n, encoder.masks.nnz
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [m for m in unwrapped(backbone).modules() if isinstance(m, kinds)]
    total = sum(m.weight.numel() for m in layers)
    return {
        "sparsity": 1 - kept / n,
        "backbone_sparsity": (n - kept) / total,
        "prunable_weights": n,
        "kept_weights": kept,
    }


def _mask(backbone: nn.Module, names: Iterable[str]) -> nn.Module:
    if names := list(names):
        patching.apply([patching.masking(names)], unwrapped(backbone))
    for layer in masked_layers(backbone).values():
        if not any(hook is _adopt for hook in hooks_before_loading(layer)):
            layer.register_load_state_dict_pre_hook(_adopt)
    net = unwrapped(backbone)
    if not any(hook is _adopt_widths for hook in hooks_before_loading(net)):
        net.register_load_state_dict_pre_hook(_adopt_widths)
    return backbone


def forget(module: nn.Module) -> None:
    """Let `module` load weights as torch does, without a look at masks and widths."""
    forget_hooks_before_loading(module, (_adopt, _adopt_widths))


def _adopt(layer: Any, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: a weight without its mask is an error; missing side buffers are made."""
    packing.unpack_mask_(state, prefix)
    if prefix + "weight" in state and prefix + "mask" not in state:
        raise CheckpointError(
            f"These weights have no mask for '{prefix.rstrip('.')}', but this model is sparse. "
            f"Load them into a dense model (leave out the sparse section), or start from a "
            f"checkpoint of a sparse run."
        )
    packing.unpack_(state, prefix)
    for name in SIDE_BUFFERS:
        if prefix + name in state:
            _add_buffer(layer, name)


def _adopt_widths(net: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading what slimming has left of an encoder: take over its widths."""
    if prefix + MARK in state:
        resize_(net, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def check_pattern(state: Mapping[str, Tensor], checkpoint: Mapping[str, Any]) -> None:
    """Check that the masks of an N:M run are N:M: no group is in between.

    Args:
        state: an encoder's, with masks.
        checkpoint: the file it comes from; its sparse state names the pattern.

    Raises:
        CheckpointError: names the layer.
    """
    goal = (checkpoint.get("sparse_state") or {}).get("goal") or {}
    text = goal.get("granularity", "element")
    if ":" not in str(text):  # of another kind, perhaps one that only its own package knows
        return
    pattern = parse(text)
    if not isinstance(pattern, NM):
        return
    masks = {key: mask for key, mask in state.items() if key.endswith(".mask")}
    for key, mask in masks.items():
        if mask.shape[1] % pattern.m or not pattern.fits(mask):
            raise CheckpointError(
                f"The mask of '{key.removesuffix('.mask')}' is not what a run with "
                f"sparse.granularity={pattern} makes: masks were edited or come from another file."
            )
