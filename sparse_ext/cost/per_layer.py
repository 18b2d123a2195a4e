# SPDX-License-Identifier: MIT
"""Parameters and MACs per layer, from one forward pass (algorithms specification, section 14).

Shapes are those that a real forward pass shows, so stems, paddings and input sizes are never
guessed. Densities are those of the real masks, so ERK's denser early layers are paid for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solo.backbones import input_channels
from solo.errors import ConfigError
from sparse_ext.masks.dual_norms import second_sets

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COUNTED = (*_CONVS, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class LayerCost:
    """Parameters and multiply-accumulates of one convolution or linear layer.

    Attributes:
        name: fully qualified name.
        shape: of the weight.
        prunable: whether it belongs to the prunable set.
        weights: number of weights (no bias).
        kept: weights whose mask is 1; without a mask, weights that are not zero. Where weights
            live on under their mask, those that evaluation uses.
        macs_dense: multiply-accumulates per image with every weight.
        macs_effective: multiply-accumulates per image with kept weights only.
    """

    name: str
    shape: tuple[int, ...]
    prunable: bool
    weights: int
    kept: int
    macs_dense: int
    macs_effective: float

    @property
    def density(self) -> float:
        """Share of the weights that the mask keeps."""
        return self.kept / self.weights


@dataclass(frozen=True)
class CostTable:
    """Cost of one forward pass for one image.

    Attributes:
        layers: by module order.
        input_shape: (C, H, W) of the image.
        parameters: all of them, biases and norms too (of two sets of norms one).
        other_macs: multiply-accumulates outside of these layers: products of attention, and the
            projections of `nn.MultiheadAttention`, which are no layers of their own.
    """

    layers: tuple[LayerCost, ...]
    input_shape: tuple[int, ...]
    parameters: int
    other_macs: int = 0

    @property
    def prunable(self) -> CostTable:
        """The same table with the prunable layers alone."""
        layers = tuple(layer for layer in self.layers if layer.prunable)
        return CostTable(layers, self.input_shape, sum(layer.weights for layer in layers))

    @property
    def parameters_kept(self) -> int:
        """Number of parameters without the pruned ones."""
        return self.parameters - sum(layer.weights - layer.kept for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Pruned share of the parameters; of the weights, in `prunable`."""
        return 1 - self.parameters_kept / max(1, self.parameters)

    @property
    def macs_dense(self) -> int:
        """Multiply-accumulates per image when every weight is used."""
        return sum(layer.macs_dense for layer in self.layers) + self.other_macs

    @property
    def macs_effective(self) -> float:
        """MACs per image with kept weights only (modelled: no dense kernel skips zeros)."""
        return sum(layer.macs_effective for layer in self.layers) + self.other_macs

    @property
    def flops_dense(self) -> int:
        """Floating-point operations per image, two per multiply-accumulate, with every weight."""
        return 2 * self.macs_dense

    @property
    def mac_ratio(self) -> float:
        """Effective over dense MACs; not the density, because layers differ in map size."""
        return self.macs_effective / max(1, self.macs_dense)

    def ratio_at(self, densities: dict[str, float]) -> float:
        """Effective over dense MACs if the named layers had these densities, others as they are.

        Raises:
            ConfigError: for a name that is no layer of this network.
        """
        unknown = set(densities) - {layer.name for layer in self.layers}
        if unknown:
            raise ConfigError(f"This network has no layer {sorted(unknown)[0]!r}.")
        macs = [x.macs_dense * densities.get(x.name, x.density) for x in self.layers]
        return (sum(macs) + self.other_macs) / max(1, self.macs_dense)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data that JSON can hold."""
        own = self.prunable
        return {
            "input_shape": list(self.input_shape),
            "parameters": self.parameters,
            "parameters_kept": self.parameters_kept,
            "macs_dense": self.macs_dense,
            "macs_effective": round(self.macs_effective),
            "flops_dense": self.flops_dense,
            "flops_effective": round(2 * self.macs_effective),
            "mac_ratio": self.mac_ratio,
            "prunable_weights": own.parameters,
            "prunable_kept": own.parameters_kept,
            "prunable_sparsity": own.sparsity,
            "prunable_macs_dense": own.macs_dense,
            "prunable_macs_effective": round(own.macs_effective),
            "other_macs": self.other_macs,
            "layers": [asdict(layer) | {"density": layer.density} for layer in self.layers],
        }


def count(model: nn.Module, input_shape: Sequence[int] | int) -> CostTable:
    """Measure `model` with one forward pass of one black image, in eval mode.

    Args:
        model: any module that takes a batch of images; it is left as it was.
        input_shape: (C, H, W), or the side of a square image.

    Raises:
        ConfigError: if the model cannot take such an image.
    """
    shape = (
        (input_channels(model), input_shape, input_shape)
        if isinstance(input_shape, int)
        else tuple(input_shape)
    )
    with torch.no_grad(), _untouched(model), _every_product(), _recorded(model) as macs:
        total = _forward(model, shape)
    prunable = _prunable_names(model)
    modules = dict(model.named_modules())
    layers = tuple(
        _layer(name, modules[name], name in prunable, number) for name, number in macs.items()
    )
    beside = second_sets(model)
    parameters = sum(p.numel() for p in model.parameters() if id(p) not in beside)
    # gated layers compute what they then discard; that is no part of the network
    gated = getattr(model, "gating", None) is not None
    other = 0 if gated else max(0, total - sum(layer.macs_dense for layer in layers))
    return CostTable(layers, shape, parameters, other)


def _layer(name: str, module: nn.Module, prunable: bool, macs: int) -> LayerCost:
    weight: Tensor = module.weight  # type: ignore[assignment]
    mask, branches = getattr(module, "mask", None), getattr(module, "branches", None)
    size = weight.numel()
    kept = int((weight if mask is None else mask).count_nonzero())
    if branches is not None and not branches.evaluation:
        kept = size
    return LayerCost(name, tuple(weight.shape), prunable, size, kept, macs, macs * kept / size)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[dict[str, int]]:
    """MACs per image by layer name, filled in by forward passes inside the block."""
    macs: dict[str, int] = {}
    counted = ((m, name) for name, m in model.named_modules() if isinstance(m, COUNTED))
    names: dict[nn.Module, str] = dict(counted)

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        # a weight of (out, in / groups, ...) is used once per output position; transposed: input
        if isinstance(module, nn.Linear):
            positions = output.numel() // output.shape[-1]
        else:
            image = inputs[0] if isinstance(module, _TRANSPOSED) else output
            positions = image[:, 0].numel()
        macs[names[module]] = macs.get(names[module], 0) + positions * weight.numel()

    hooks = [module.register_forward_hook(record) for module in names]
    try:
        yield macs
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _every_product() -> Iterator[None]:
    """Attention by single products inside the block: its fused kernel is opaque to the counter."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards modes and random numbers are as they were."""
    modes = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _forward(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Run one image; returns all MACs of it as torch's own counter sees them."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    parameter = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
    # as plain matrix products: torch 2.11 does not count those of the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        try:
            model(image)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"{type(model).__name__} does not take an image of shape {shape}: {error}"
            ) from error
    return counter.get_total_flops() // 2


def _prunable_names(model: nn.Module) -> set[str]:
    """Layers with a mask; in a dense encoder, those that a sparse run would give one."""
    masked = {name for name, m in model.named_modules() if getattr(m, "mask", None) is not None}
    if masked:
        return masked
    from sparse_ext.masks.prunable import prunable

    try:
        return set(prunable(model))
    except ConfigError:  # nothing to prune
        return set()
