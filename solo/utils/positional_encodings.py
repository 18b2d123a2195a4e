# SPDX-License-Identifier: MIT
"""Sinusoidal positional encodings in one, two and three dimensions (Vaswani et al. 2017, 3.5)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def get_emb(sin_inp: Tensor) -> Tensor:
    """Interleave sine and cosine: (..., n) to (..., 2 n)."""
    return torch.stack((sin_inp.sin(), sin_inp.cos()), dim=-1).flatten(-2)


class _PositionalEncoding(nn.Module):
    """Encoding of a channels-last grid: an equal share of the channels for each axis.

    The last encoding is kept in the buffer `cached_penc`, which is in the state dict once used.

    Args:
        channels: channels of the input, rounded up so that every axis gets sine-cosine pairs.
    """

    axes: int
    inv_freq: Tensor
    cached_penc: Tensor | None

    def __init__(self, channels: int):
        super().__init__()
        self.org_channels = channels
        self.channels = math.ceil(channels / (2 * self.axes)) * 2
        exponents = torch.arange(0, self.channels, 2).float() / self.channels
        self.register_buffer("inv_freq", 1 / 10000**exponents)
        self.register_buffer("cached_penc", None)

    def forward(self, tensor: Tensor) -> Tensor:
        """Encoding of the positions of `tensor` (N, *grid, channels), of the same shape.

        Raises:
            RuntimeError: if the number of dimensions is wrong.
        """
        if tensor.ndim != self.axes + 2:
            raise RuntimeError(f"The input tensor has to be {self.axes + 2}d!")
        cached = self.cached_penc
        if cached is None or cached.shape != tensor.shape or cached.dtype != tensor.dtype:
            batch, *grid, channels = tensor.shape
            encoding = torch.cat([self._axis(i, grid) for i in range(self.axes)], dim=-1)
            encoding = encoding[..., :channels].to(tensor.dtype)
            self.cached_penc = encoding.repeat(batch, *[1] * (self.axes + 1))
        return self.cached_penc  # type: ignore[return-value]

    def _axis(self, axis: int, grid: list[int]) -> Tensor:
        """Encoding of the coordinates along one axis, (*grid, self.channels)."""
        positions = torch.arange(grid[axis], device=self.inv_freq.device, dtype=torch.float32)
        encoding = get_emb(positions[:, None] * self.inv_freq)
        shape = [1] * self.axes + [self.channels]
        shape[axis] = grid[axis]
        return encoding.view(shape).expand(*grid, self.channels)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # the cache follows the checkpoint: a fresh module has none, a saved one any shape
        saved = state_dict.get(f"{prefix}cached_penc")
        device = self.inv_freq.device
        self.cached_penc = None if saved is None else torch.empty_like(saved, device=device)
        super()._load_from_state_dict(state_dict, prefix, *args)


class PositionalEncoding1D(_PositionalEncoding):
    """Sinusoidal encoding of the positions of sequences (N, x, channels)."""

    axes = 1


class PositionalEncoding2D(_PositionalEncoding):
    """Sinusoidal encoding of the positions of maps (N, x, y, channels)."""

    axes = 2


class PositionalEncoding3D(_PositionalEncoding):
    """For volumes (N, x, y, z, channels)."""

    axes = 3


class _Permuted(nn.Module):
    """The same encoding for inputs with the channels right after the batch."""

    encoding: type[_PositionalEncoding]

    def __init__(self, channels: int):
        super().__init__()
        self.penc = self.encoding(channels)

    def forward(self, tensor: Tensor) -> Tensor:
        """Encoding of the positions of `tensor` (N, channels, *grid), of the same shape."""
        return self.penc(tensor.movedim(1, -1)).movedim(-1, 1)

    @property
    def org_channels(self) -> int:
        """The number of channels as it was given."""
        return self.penc.org_channels


class PositionalEncodingPermute1D(_Permuted):
    """Sinusoidal encoding of the positions of sequences (N, channels, x)."""

    encoding = PositionalEncoding1D


class PositionalEncodingPermute2D(_Permuted):
    """Sinusoidal encoding of the positions of maps (N, channels, x, y)."""

    encoding = PositionalEncoding2D


class PositionalEncodingPermute3D(_Permuted):
    """For volumes (N, channels, x, y, z)."""

    encoding = PositionalEncoding3D


class Summer(nn.Module):
    """Module that adds a positional encoding to its input.

    Args:
        penc: any of the encodings above.
    """

    def __init__(self, penc: nn.Module):
        super().__init__()
        self.penc = penc

    def forward(self, tensor: Tensor) -> Tensor:
        """`tensor` plus the encoding of its positions."""
        encoding = self.penc(tensor)
        if encoding.shape != tensor.shape:
            raise RuntimeError(
                f"The encoding has shape {tuple(encoding.shape)}, the input {tuple(tensor.shape)}: "
                "give the encoding at least as many channels as the input has."
            )
        return tensor + encoding
