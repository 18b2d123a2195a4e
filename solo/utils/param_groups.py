# SPDX-License-Identifier: MIT
"""Groups of parameters for the optimizer: rates by depth, no decay of biases and norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn


def _layer_ids(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter, 0 at the input: timm's own grouping, or a layer per child that has
    parameters."""
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    names = [name for name, _ in model.named_parameters()]
    order = {
        child: index for index, child in enumerate(dict.fromkeys(n.split(".")[0] for n in names))
    }
    return {name: order[name.split(".")[0]] for name in names}


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Sequence[str] = (),
    layer_decay: float = 0.75,
) -> list[dict[str, Any]]:
    """Parameter groups with a learning rate that falls by `layer_decay` per layer below the top.

    Source: BEiT / MAE fine-tuning, but for the top: here, as in solo-learn, it is the encoder's
    last block, there the classifier, so that their rates are `layer_decay` times these. 1-d
    parameters and the named ones get no weight decay.

    Returns:
        groups `{"lr_scale", "weight_decay", "params"}`; whoever builds the optimizer multiplies
        the learning rate by `lr_scale`.
    """
    layer_ids = _layer_ids(model)
    top = max(layer_ids.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim != 1 and name not in set(no_weight_decay_list)
        layer = layer_ids.get(name, top)
        empty = {
            "lr_scale": layer_decay ** (top - layer),
            "weight_decay": weight_decay if decays else 0.0,
            "params": [],
        }
        groups.setdefault((layer, decays), empty)["params"].append(parameter)
    return list(groups.values())


def split_by_layer(
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    layer_decay: float,
    patch_embed_lr: float = 1.0,
) -> list[dict[str, Any]]:
    """Split each group of an encoder's parameters by the learning rate of their layer.

    Args:
        model: the encoder.
        groups: of its parameters.
        layer_decay: the rate falls by this factor per layer below the top; 0 or 1 leaves it.
        patch_embed_lr: a further factor for what is called `patch_embed`.

    Returns:
        groups with `lr_scale`, and names that end with it, where it is not 1.
    """
    layer_ids = _layer_ids(model)
    top = max(layer_ids.values())
    scales = {}
    for name, parameter in model.named_parameters():
        scale = (layer_decay or 1.0) ** (top - layer_ids.get(name, top))
        scales[id(parameter)] = scale * (patch_embed_lr if "patch_embed" in name else 1.0)
    out: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scales[id(parameter)], []).append(parameter)
        for scale, params in parts.items():
            changes = (
                {} if scale == 1 else {"lr_scale": scale, "name": f"{group['name']}_{scale:g}"}
            )
            out.append({**group, **changes, "params": params})
    return out


def remove_bias_and_norm_from_weight_decay(
    parameter_groups: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Split each group: parameters with at most one dimension go to a group without weight decay.

    Its name gets the ending `_no_decay`; every other key is copied; empty groups are left out.
    """
    out = []
    for group in parameter_groups:
        params = list(group["params"])
        no_decay = {**group, "weight_decay": 0, "params": [p for p in params if p.ndim <= 1]}
        if group.get("name"):
            no_decay["name"] = f"{group['name']}_no_decay"
        decay = {**group, "params": [p for p in params if p.ndim > 1]}
        out += [part for part in (decay, no_decay) if part["params"]]
    return out
