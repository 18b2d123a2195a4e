# SPDX-License-Identifier: MIT
"""From a masked state dict to the plain one: every key is the dense architecture's own again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from solo.errors import CheckpointError
from sparse_ext.masks.living_weights import evaluated
from sparse_ext.masks.packing import unpack_masks_

_SIDE_BUFFERS = ("mask", "shadow", "score", "shadow_packed", "score_packed")


def _unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy with masks in the place of their bits."""
    state = dict(state)
    unpack_masks_(state)
    return state


def masked_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks in a state dict that evaluation sees, by the key of the weight they belong to.

    Raises:
        CheckpointError: if a mask does not fit its weight.
    """
    masks, state = {}, evaluated(_unpacked(state))
    for key, weight in state.items():
        mask = state.get(f"{key.removesuffix('weight')}mask") if key.endswith("weight") else None
        if mask is None:
            continue
        if mask.shape != weight.shape:
            raise CheckpointError(
                f"'{key}' has shape {tuple(weight.shape)}, its mask {tuple(mask.shape)}: weights "
                "and masks come from different checkpoints."
            )
        masks[key] = mask.bool()
    return masks


def strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict that a plain, dense model loads strictly.

    Masks are multiplied in and left out, together with the buffers that only training needs.
    The model is as large and as fast as the dense one: it merely holds zeros. Of weights that
    live on under their masks, and of two sets of batch norms, it is what evaluation sees.

    Args:
        state: of an encoder with masked layers; not changed.

    Raises:
        CheckpointError: if it has no masks, or one does not fit its weight.
    """
    state = _unpacked(state)
    seen, masks = evaluated(state), masked_weights(state)
    if not masks and len(seen) == len(state):
        raise CheckpointError("This state dict has no masks: it is dense already.")
    side = {f"{key.removesuffix('weight')}{name}" for key in masks for name in _SIDE_BUFFERS}
    kept = {key: tensor for key, tensor in seen.items() if key not in side}
    return kept | {key: kept[key].masked_fill(~mask, 0) for key, mask in masks.items()}
