# SPDX-License-Identifier: MIT
"""A ticket into an encoder: weights first, then masks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from solo.errors import CheckpointError
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.masks.masking import patch_named
from sparse_ext.tickets import run_folder


def load_ticket(
    backbone: nn.Module, masks: str | Path, weights: str | Path | None = None
) -> nn.Module:
    """Give a plain encoder weights (all of them, or none) and masks, in place.

    Args:
        backbone: as `solo.backbones.build_encoder` makes it.
        masks: mask file; the layers that it names become masked.
        weights: weight file of `main_tickets.py`, or a checkpoint of a dense run; None keeps the
            encoder's own.

    Raises:
        CheckpointError: a file is missing or damaged, or does not fit the encoder.
    """
    if weights is not None:
        _load_weights(backbone, Path(weights))
    loaded = MaskSet.load(masks)
    patch_named(backbone, loaded)
    encoder = Encoder(backbone)
    with torch.no_grad():
        encoder.masks.copy_(loaded)
    for layer in encoder.layers.values():
        layer.apply_mask()
    return backbone


def _load_weights(backbone: nn.Module, path: Path) -> None:
    if path.suffix != ".safetensors":
        from solo.checkpoints.loading import load_encoder

        load_encoder(backbone, path)
        return
    state = run_folder.load_weights(path)
    own = backbone.state_dict()
    wrong = sorted(k for k in {*own, *state} if k not in own or k not in state)
    wrong += [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise CheckpointError(
            f"{path} does not fit this {type(backbone).__name__}: {len(wrong)} tensors differ in "
            f"name or shape, the first is {wrong[0]}. Set backbone.name, backbone.kwargs and "
            "data.dataset as in the run that wrote it."
        )
    backbone.load_state_dict(state)
