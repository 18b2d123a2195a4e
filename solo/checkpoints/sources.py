# SPDX-License-Identifier: MIT
"""Encoders in files of any origin: found by their names, fitted to the encoder that is built.

A file of torchvision, timm, MoCo, DINO, MAE, lightly or another run holds an encoder's tensors
somewhere in nested dictionaries, behind some prefix. `find_encoder` tries every place and takes the
one where most of the encoder's own names are. `fit` resizes position and patch embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from solo.errors import CheckpointError

#: what is tried first where two places fit equally well: the encoder that its authors evaluate
_ONLINE = ("teacher", "encoder_q", "base_encoder", "online", "student")
_MOMENTUM = (
    *("momentum_backbone", "momentum_encoder", "teacher", "encoder_k", "target_encoder"),
    "backbone_momentum",  # lightly
)
_SAY_NOTHING = {"", "backbone", "encoder", "state_dict", "model", "net", "network", "trunk"}
_WRAPPERS = ("module.", "_orig_mod.")
#: tokens beside the patches: an encoder that was trained with them computes something else without
_TOKENS = ("reg_token", "register_tokens", "dist_token")


@dataclass(frozen=True)
class Found:
    """The tensors of an encoder in a file, and where they were.

    Attributes:
        state: tensors by the encoder's own names, the file's other tensors of that place too.
        place: where they are in the file, such as `teacher / backbone.`; empty = the file itself.
        looked_for: places that were tried, best first.
    """

    state: dict[str, Tensor]
    place: str
    looked_for: tuple[str, ...] = ()


@dataclass
class Fitted:
    """What became of the tensors of a file.

    Attributes:
        state: tensors that the encoder can load.
        resized: (name, shape in the file, shape here) of embeddings that were interpolated.
    """

    state: dict[str, Tensor]
    resized: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)


def state_dicts(content: Mapping[str, Any], depth: int = 3) -> Iterator[tuple[str, dict]]:
    """Every dictionary of tensors in a file's content, with its path (`teacher`, `model / ema`).

    Args:
        content: what was read from the file.
        depth: how many dictionaries may lie inside each other.
    """
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield "", tensors
    if depth:
        for key, value in content.items():
            if isinstance(value, Mapping):
                for path, state in state_dicts(value, depth - 1):
                    yield f"{key} / {path}" if path else str(key), state


def find_encoder(content: Mapping[str, Any], backbone: nn.Module, encoder: str = "online") -> Found:
    """The place in a file where most of an encoder's own names are.

    Args:
        content: what `solo.checkpoints.files.read_checkpoint` returned.
        backbone: the encoder that the tensors are for.
        encoder: `online` or `momentum`: which of two that fit equally well.

    Raises:
        CheckpointError: none of its names is anywhere in the file; says what was looked for.
    """
    own = backbone.state_dict()
    names = set(own)
    candidates = []
    for path, raw in state_dicts(content):
        state = {_unwrapped(key): value for key, value in raw.items()}
        for view in _spellings(state, backbone):
            for prefix in _prefixes(view, names):
                part = {k.removeprefix(prefix): v for k, v in view.items() if k.startswith(prefix)}
                matched = len(names & set(part))
                place = " / ".join(filter(None, (path, prefix)))
                candidates.append((-matched, rank(place, encoder), len(candidates), place, part))
    candidates.sort(key=lambda candidate: candidate[:3])
    if not candidates or not candidates[0][0]:
        examples = ", ".join(list(own)[:3])
        raise CheckpointError(
            f"no tensor of the file has a name of this {type(backbone).__name__} (such as "
            f"{examples}) behind any prefix: it holds another architecture, or no encoder."
        )
    places = tuple(dict.fromkeys(place for *_, place, _ in candidates))
    return Found(candidates[0][4], candidates[0][3], places)


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _prefixes(state: Mapping[str, Tensor], names: set[str]) -> list[str]:
    """Prefixes behind which at least one of the encoder's rarest-looking names stands."""
    anchors = sorted(names, key=lambda name: (-name.count("."), -len(name)))[:4] + sorted(names)[:4]
    found = [
        key.removesuffix(anchor)
        for anchor in anchors
        for key in state
        if key == anchor or key.endswith("." + anchor)
    ]
    return list(dict.fromkeys(found))


def rank(place: str, encoder: str = "online") -> int:
    """How soon a place in a file is taken where several fit equally well, 0 or -1 first.

    Args:
        place: such as `teacher / backbone.`.
        encoder: `online` or `momentum`.
    """
    order = _MOMENTUM if encoder == "momentum" else _ONLINE
    words = set(re.split(r"[ /.]+", place)) - _SAY_NOTHING
    named = (
        i for i, name in enumerate(order) if re.search(rf"(?:^|[ /._]){name}(?:[ /._]|$)", place)
    )
    return next(named, len(order) if words else -1 if encoder == "online" else len(order))


# -- spellings of other libraries -----------------------------------------------------------------


def _spellings(state: dict[str, Tensor], backbone: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The file's tensors as they are named, and as our encoders name them."""
    yield state
    if any(key.endswith("in_proj_weight") for key in state):
        yield {_from_torchvision_vit(key): value for key, value in state.items()}
    if any(key.endswith("register_tokens") for key in state):
        yield _from_dinov2(state)
    yield _from_sequential(state, [name for name, _ in backbone.named_children()])


def _from_sequential(state: dict[str, Tensor], children: list[str]) -> dict[str, Tensor]:
    """Numbers of children to names: lightly keeps a ResNet's children in an `nn.Sequential`."""
    numbered = re.compile(r"^((?:[A-Za-z_]\w*\.)*?)(\d+)\.(.+)$")
    renamed = {}
    for key, value in state.items():
        match = numbered.match(key)
        if match and int(match[2]) < len(children):
            renamed[f"{match[1]}{children[int(match[2])]}.{match[3]}"] = value
    return renamed


def _from_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 gives its class token a position; timm has that in the token, and patches alone in
    `pos_embed`, where there are registers."""
    renamed = dict(state)
    for key in [key for key in state if key.endswith("register_tokens")]:
        place = key.removesuffix("register_tokens")
        renamed[f"{place}reg_token"] = renamed.pop(key)
        names = f"{place}cls_token", f"{place}pos_embed"
        if all(name in state for name in names):
            token, positions = (state[name] for name in names)
            renamed[names[0]] = token + positions[:, :1]
            renamed[names[1]] = positions[:, 1:]
    return renamed


_TORCHVISION_VIT = (
    (r"^(.*?)encoder\.layers\.encoder_layer_(\d+)\.", r"\1blocks.\2."),
    (r"self_attention\.in_proj_(weight|bias)$", r"attn.qkv.\1"),
    (r"self_attention\.out_proj\.", "attn.proj."),
    (r"\.ln_(1|2)\.", r".norm\1."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
    (r"^(.*?)class_token$", r"\1cls_token"),
    (r"^(.*?)conv_proj\.", r"\1patch_embed.proj."),
    (r"^(.*?)encoder\.pos_embedding$", r"\1pos_embed"),
    (r"^(.*?)encoder\.ln\.", r"\1norm."),
)


def _from_torchvision_vit(key: str) -> str:
    for pattern, replacement in _TORCHVISION_VIT:
        key = re.sub(pattern, replacement, key)
    return key


def strangers(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Tensors of a file that belong to a part which the encoder has, and that it lacks.

    Heads, decoders and mask tokens may be left out; a block too many means that the file holds a
    deeper encoder, and registers or a distillation token that it holds another one.

    >>> layer = {"layer1.0.conv1.weight": None}
    >>> strangers({**layer, "layer1.2.conv1.weight": None, "fc.weight": None}, layer)
    ['layer1.2.conv1.weight']
    """
    parts = {key.partition(".")[0] for key in own if "." in key}
    parts.update(_TOKENS)
    return [key for key in state if key not in own and key.partition(".")[0] in parts]


# -- sizes ----------------------------------------------------------------------------------------


def fit(state: Mapping[str, Tensor], backbone: nn.Module) -> Fitted:
    """Tensors in the sizes of `backbone`: position and patch embeddings are interpolated.

    Args:
        state: by the encoder's own names.
        backbone: the encoder that is to load them.
    """
    own = backbone.state_dict()
    result = Fitted(dict(state))
    for name, value in state.items():
        if name not in own or value.shape == own[name].shape:
            continue
        new = _resized(name, value, own[name], backbone)
        if new is not None and new.shape == own[name].shape:
            result.state[name] = new
            result.resized.append((name, tuple(value.shape), tuple(new.shape)))
    return result


def _resized(name: str, value: Tensor, like: Tensor, backbone: nn.Module) -> Tensor | None:
    from timm.layers import resample_abs_pos_embed, resample_patch_embed

    if name.endswith("pos_embed") and value.ndim == like.ndim == 3:
        if value.shape[-1] != like.shape[-1]:
            return None
        prefix = int(getattr(backbone, "num_prefix_tokens", 1))
        grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
        side = round((like.shape[1] - prefix) ** 0.5)
        size = list(grid) if grid else [side, side]
        own_prefix = value.shape[1] - round((value.shape[1] - prefix) ** 0.5) ** 2
        return resample_abs_pos_embed(value, size, num_prefix_tokens=max(0, own_prefix))
    if name.endswith("patch_embed.proj.weight") and value.shape[:2] == like.shape[:2]:
        return resample_patch_embed(value, list(like.shape[2:]))
    return None
