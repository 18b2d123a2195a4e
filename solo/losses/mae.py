# SPDX-License-Identifier: MIT
"""Masked autoencoders (He et al. 2021, section 3): mean squared error on the masked patches."""

from __future__ import annotations

from torch import Tensor

from solo.errors import ConfigError
from solo.losses.precision import in_float32


def patchify(imgs: Tensor, patch_size: int) -> Tensor:
    """Cut images into flat patches in raster order.

    Args:
        imgs: (N, C, H, W), square.
        patch_size: side of a patch in pixels.

    Returns:
        (N, (H / patch_size)^2, patch_size^2 * C), inner order (row, column, channel).

    Raises:
        ConfigError: if the images are not square or not a multiple of the patch size.
    """
    n, channels, height, width = imgs.shape
    if height != width or height % patch_size:
        raise ConfigError(
            f"MAE needs square images whose side is a multiple of the patch size, got "
            f"{height}x{width} with patch_size {patch_size}; "
            "change augmentations.crop_size or backbone.kwargs.patch_size."
        )
    side = height // patch_size
    grid = imgs.reshape(n, channels, side, patch_size, side, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, side * side, patch_size**2 * channels)


@in_float32
def mae_loss_func(
    imgs: Tensor, pred: Tensor, mask: Tensor, patch_size: int, norm_pix_loss: bool = True
) -> Tensor:
    """Mean over masked patches of the mean squared error of their pixels.

    Args:
        imgs: (N, C, H, W).
        pred: predicted patches, (N, L, patch_size^2 * C).
        mask: (N, L), 1 where the patch was hidden from the encoder.
        patch_size: side of a patch in pixels.
        norm_pix_loss: standardise every target patch (unbiased variance).
    """
    target = patchify(imgs, patch_size)
    if norm_pix_loss:
        var = target.var(dim=-1, keepdim=True)
        target = (target - target.mean(dim=-1, keepdim=True)) / (var + 1e-6).sqrt()
    per_patch = (pred - target).pow(2).mean(dim=-1)
    return (per_patch * mask).sum() / mask.sum()
