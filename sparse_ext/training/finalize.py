# SPDX-License-Identifier: MIT
"""The end of sparse training: a plain network again, whose pruned weights are zeros."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from solo import extensions
from sparse_ext.compat import unwrapped
from sparse_ext.kernels.element.swap import use_plain_layers
from sparse_ext.kernels.layer import use_dense_kernel
from sparse_ext.masks.channels.widths import MARK
from sparse_ext.masks.dual_norms import plain_norms
from sparse_ext.masks.encoder import SIDE_BUFFERS
from sparse_ext.masks.living_weights import MARKER, Functional
from sparse_ext.masks.masked_layers import Masked, masked_layers
from sparse_ext.masks.masking import folded, forget

M = TypeVar("M", bound=nn.Module)


def finalize(module: M) -> M:
    """Take the masks off an encoder, or off all encoders of a LightningModule, in place.

    Layers become torch's own `Conv2d` and `Linear` again and pruned weights are zeros, as
    evaluation sees them: features in eval mode do not change. Nothing prunes or holds the zeros any
    more, so training on makes the network dense. A network without masks is left as it is. Gates
    stay: they compute, masks do not.

    >>> import torch, torchvision, sparse_ext
    >>> net = torchvision.models.resnet18()
    >>> sparse_ext.finalize(net) is net
    True

    Args:
        module: what was made sparse, by `sparsify` or by a configuration, or a loaded encoder.

    Returns:
        the same object; its state dict has the keys of the dense architecture.
    """
    use_plain_layers(module)
    use_dense_kernel(module)
    state = plain_state(module)
    for layer in masked_layers(module).values():
        _plain(layer)
    plain_norms(module)
    for part in unwrapped(module).modules():
        _drop(part, MARK)
        forget(part)
        for name in ("_pruning", "configure_callbacks", "faster"):
            part.__dict__.pop(name, None)
    unwrapped(module).load_state_dict(state)
    return module


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's weights as evaluation sees them, by the names of the dense architecture."""
    state = unwrapped(module).state_dict()
    seen = extensions.evaluated(state)
    masked = {key.removesuffix("mask") for key in seen if key.endswith(".mask")}
    beside = {prefix + name for prefix in masked for name in SIDE_BUFFERS}
    kept = {k: v for k, v in folded(seen).items() if k not in beside}
    return {key: value for key, value in kept.items() if key.rpartition(".")[2] != MARK}


def _drop(module: nn.Module, *names: str) -> None:
    """Remove those of these buffers that the module has itself."""
    for name in {*names} & {name for name, _ in module.named_buffers(recurse=False)}:
        delattr(module, name)


def _plain(layer: Masked) -> None:
    _drop(layer, "mask", MARKER, *SIDE_BUFFERS)
    if isinstance(layer, Functional):
        del layer.branches, layer.straight
    layer.__class__ = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear  # type: ignore[assignment]
