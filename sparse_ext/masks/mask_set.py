# SPDX-License-Identifier: MIT
"""The masks of an encoder as one object, and the rule for changing a mask.

Mask: bool, 1 = kept. Pruned weights are stored as zero; `shadow` holds the last value of pruned
weights where a method has an EMA teacher (sections 0.3 and 0.5 of the algorithms specification).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from solo.errors import ConfigError, did_you_mean
from sparse_ext.masks import files
from sparse_ext.masks.masked_layers import Masked


class MaskSet(Mapping[str, Tensor]):
    """Layer name -> bool mask, in module order.

    Built from an encoder it reads the modules' own buffers each time, so it stays valid when the
    encoder moves to another device; built from tensors it holds those.

    Args:
        masks: bool tensors or masked layers by name.

    Raises:
        ConfigError: if it is empty, or a tensor is not bool.
    """

    def __init__(self, masks: Mapping[str, Tensor | nn.Module]) -> None:
        if not masks:
            raise ConfigError("There are no masks: the encoder has no masked layer.")
        self._masks = dict(masks)
        for name, mask in self.items():
            if mask.dtype is not torch.bool:
                raise ConfigError(f"The mask of '{name}' is {mask.dtype}, not bool.")

    @classmethod
    def from_module(cls, module: nn.Module) -> MaskSet:
        """The masks of every masked layer in `module`.

        Raises:
            ConfigError: if it has none.
        """
        return cls({name: m for name, m in module.named_modules() if isinstance(m, Masked)})

    def __getitem__(self, name: str) -> Tensor:
        mask = self._masks[name]
        return mask if isinstance(mask, Tensor) else mask.mask  # type: ignore[return-value]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"MaskSet({len(self)} layers, n={self.n}, nnz={self.nnz})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the weight of each layer."""
        return {name: tuple(mask.shape) for name, mask in self.items()}

    @property
    def n(self) -> int:
        """Number of prunable weights of all layers."""
        return sum(mask.numel() for mask in self.values())

    @property
    def nnz(self) -> int:
        """Number of kept weights of all layers."""
        return _total(mask.count_nonzero() for mask in self.values())

    @property
    def density(self) -> float:
        """Kept share of the prunable weights of all layers."""
        return self.nnz / self.n

    @property
    def sparsity(self) -> float:
        """Pruned share of the prunable weights of all layers."""
        return 1 - self.density

    def layer_density(self) -> dict[str, float]:
        """Kept share of the weights of each layer."""
        counts = torch.stack([mask.count_nonzero() for mask in self.values()]).tolist()
        return {n: c / m.numel() for (n, m), c in zip(self.items(), counts, strict=True)}

    def iou(self, other: Mapping[str, Tensor]) -> float:
        """Kept in both / kept in either, over all layers together (1.0 if both are empty)."""
        self.check_same_layers(other)
        both = _total((mask & other[name]).count_nonzero() for name, mask in self.items())
        either = _total((mask | other[name]).count_nonzero() for name, mask in self.items())
        return both / either if either else 1.0

    def xor_fraction(self, other: Mapping[str, Tensor]) -> float:
        """Share of all prunable positions where the two differ (SyncCP's global inconsistency)."""
        self.check_same_layers(other)
        return _total((m ^ other[name]).count_nonzero() for name, m in self.items()) / self.n

    def layer_xor_fraction(self, other: Mapping[str, Tensor]) -> dict[str, float]:
        """Share of differing entries of each layer, as `xor_fraction` gives it for all."""
        self.check_same_layers(other)
        return {n: int((m ^ other[n]).count_nonzero()) / m.numel() for n, m in self.items()}

    def clone(self) -> MaskSet:
        """A copy that no longer follows the encoder."""
        return MaskSet({name: mask.clone() for name, mask in self.items()})

    @torch.no_grad()
    def copy_(self, new: Mapping[str, Tensor]) -> MaskSet:
        """Take over the values of `new` in place; tensors keep their identity.

        Raises:
            ConfigError: if names or shapes differ; nothing is changed.
        """
        self.check_same_layers(new)
        for name, mask in self.items():
            mask.copy_(new[name])
        return self

    def checksum(self) -> int:
        """Signed 64-bit number of names, shapes and bits; equal masks have equal checksums.

        Depends on neither device nor memory format.
        """
        digest = hashlib.blake2b(digest_size=8)
        for name, mask in self.items():
            digest.update(f"{name}{tuple(mask.shape)}".encode())
            digest.update(files.pack(mask).numpy().tobytes())
        return int.from_bytes(digest.digest(), "little", signed=True)

    def save(self, path: str | Path) -> None:
        """Write the masks to a safetensors file, eight to a byte."""
        files.write(path, self, self.checksum())

    @classmethod
    def load(cls, path: str | Path) -> MaskSet:
        """Read what `save` wrote, as tensors on the CPU.

        Raises:
            CheckpointError: if the file is missing, damaged or not a mask file.
        """
        masks, checksum = files.read(path)
        loaded = cls(masks)
        if loaded.checksum() != checksum:
            raise files.damaged(path, "its masks do not match its checksum")
        return loaded

    def check_same_layers(self, other: Mapping[str, Tensor]) -> None:
        """Raise ConfigError unless `other` has the same layer names and shapes."""
        for name in other:
            if name not in self:
                raise ConfigError(f"No masked layer is called '{name}'. {did_you_mean(name, self)}")
        for name, mask in self.items():
            if name not in other:
                raise ConfigError(f"The other masks have none for layer '{name}'.")
            if other[name].shape != mask.shape:
                raise ConfigError(
                    f"Layer '{name}': mask of shape {tuple(mask.shape)} against "
                    f"{tuple(other[name].shape)}; they belong to different architectures."
                )


def _total(counts: Iterable[Tensor]) -> int:
    """Sum of 0-dim tensors with one transfer to the host."""
    return int(torch.stack(list(counts)).sum())
