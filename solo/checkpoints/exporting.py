# SPDX-License-Identifier: MIT
"""Encoders as plain weight files: masks folded in, nothing that only training reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from solo import extensions
from solo.checkpoints.described import description
from solo.checkpoints.files import (
    Encoder,
    encoder_state,
    read_args,
    read_checkpoint,
    write_tensors,
)
from solo.checkpoints.loading import _trained_by, _training_keys


def export_encoder(
    source: nn.Module | str | Path | Mapping[str, Any],
    path: str | Path,
    encoder: Encoder = "online",
    args: Mapping[str, Any] | None = None,
) -> Path:
    """Write an encoder as safetensors that torchvision or timm loads with `strict=True`.

    Masks are folded into the weights (pruned weights are zeros in the file), training state is
    left out. The other side's model needs no classifier: `fc = nn.Identity()` in torchvision,
    `num_classes=0` in timm. The file's metadata say what no shape shows (heads of a ViT).

    Args:
        source: an encoder, a checkpoint file, or what `read_checkpoint` returned.
        path: file to write.
        encoder: which encoder of a checkpoint.
        args: configuration of its run, which the file then carries (see `description`); that
            beside a checkpoint is found.

    Returns:
        `path`.
    """
    if args is None and isinstance(source, (str, Path)):
        args = read_args(source)
    metadata = {"format": "pt", **(description(args) if args else {})}
    if isinstance(source, nn.Module):
        state = dict(source.state_dict())
        metadata["class"] = type(source).__name__
        first = next(iter(source.blocks), None) if hasattr(source, "blocks") else None
        if hasattr(getattr(first, "attn", None), "num_heads"):
            metadata["num_heads"] = str(first.attn.num_heads)
    else:
        checkpoint = source if isinstance(source, Mapping) else read_checkpoint(source)
        state = encoder_state(checkpoint, encoder)
        if args and "backbone" in args:
            metadata.update(backbone=json.dumps(args["backbone"]), method=_trained_by(args) or "")
    state = _plain(state)
    plain = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    return write_tensors(path, plain, metadata)


def plain_state(checkpoint: Mapping[str, Any], encoder: Encoder = "online") -> dict[str, Tensor]:
    """An encoder's weights without anything of ours: masks folded in, no training state."""
    return _plain(encoder_state(checkpoint, encoder))


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    training = _training_keys(state)
    found = extensions.evaluated(state)
    return extensions.folded({key: value for key, value in found.items() if key not in training})
