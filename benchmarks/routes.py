# SPDX-License-Identifier: MIT
"""The networks that `real_speed.py` compares: ways of making use of zeros."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from sparse_ext.config.sections import build
from sparse_ext.export import OnnxEncoder, export_onnx, load_packed, save_packed, save_slim
from sparse_ext.export.slim import difference
from sparse_ext.kernels import needs_dense_gradients, use_block_kernel, use_dense_kernel
from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.coupled_units import CoupledUnits
from sparse_ext.pruning.units import Units

SIZE = 32
MULTIPLE = 16  # widths of slim networks: what AVX-512 takes at once
FORMATS = (torch.contiguous_format, torch.channels_last)


class Unreachable(ValueError):
    """A network cannot be made that small."""


@dataclass
class Route:
    """One way of making use of zeros.

    Attributes:
        name: as printed.
        parameters: that it holds, zeros included.
        off: difference of its features from those of the masked network.
        file: what is shipped.
        nets: to choose the fastest from; None where only the file differs from the route above.
        trains: whether it can be trained.
    """

    name: str
    parameters: int
    off: float
    file: Path
    nets: list[nn.Module] = field(default_factory=list)
    trains: bool = True


def network(name: str, width: int) -> nn.Module:
    """A fresh encoder with the stem for small images."""
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder

    torch.manual_seed(0)
    kwargs = {} if width == 64 else {"width": width}
    cfg = {"method": "simclr", "backbone": {"name": name, "kwargs": kwargs}}
    return build_encoder(OmegaConf.create({**cfg, "data": {"dataset": "cifar10"}}))


def pruned(net: nn.Module, sparsity: float, granularity: str, allocation: str) -> nn.Module:
    """A copy with masks by magnitude."""
    channels = granularity == "filter"
    config = build({"name": "gmp", "granularity": granularity, "stem_dense": not channels})
    net = patch(copy.deepcopy(net), config)
    encoder = Encoder(net)
    magnitudes = {name: weight.abs() for name, weight in encoder.weights.items()}
    if channels:
        units = CoupledUnits("filter", encoder, net)
        share = _share_of_channels(net, units, encoder, sparsity)
        print(f"slim: {share:.1%} of the channels that can go")
        kept = units.largest(units.pool(magnitudes), share)
    else:
        units = Units(granularity, encoder.masks.shapes)
        values = units.pool(magnitudes)
        if granularity == "element":
            kept = units.largest(values, sparsity)
        else:
            kept = units.largest_per_layer(values, sparsity, allocation)
    encoder.change(units.expand(kept, encoder), "zero")
    return net


def _share_of_channels(
    net: nn.Module, units: CoupledUnits, encoder: Encoder, sparsity: float
) -> float:
    """The share of channels that takes that share of the parameters with it, by bisection.

    Raises:
        Unreachable: no share does, since widths stay multiples and no layer loses all.
    """
    values = units.pool({name: weight.abs() for name, weight in encoder.weights.items()})
    room, low, high, enough = (1 - sparsity) * parameters(net), 0.0, 1.0, 0.0
    for _ in range(8):
        middle = (low + high) / 2
        trial = copy.deepcopy(net)
        try:
            kept = units.largest(values, middle)
        except ValueError:  # some layer would lose its last channel
            high = middle
            continue
        Encoder(trial).change(units.expand(kept, encoder), "zero")
        if shrink_([trial], multiple=MULTIPLE).parameters[1] > room:
            low = middle
        else:
            high = enough = middle
    if enough == 0.0:
        raise Unreachable(
            f"no removal of channels takes {sparsity:.0%} of the parameters when widths stay "
            f"multiples of {MULTIPLE}"
        )
    return enough


def parameters(net: nn.Module) -> int:
    """How many numbers it holds."""
    return sum(p.numel() for p in net.parameters())


def formats(net: nn.Module) -> list[nn.Module]:
    """Copies in both memory formats."""
    return [copy.deepcopy(net).to(memory_format=layout) for layout in FORMATS]


def routes(net: nn.Module, sparsity: float, allocation: str, folder: Path) -> list[Route]:
    """Dense, masked, packed, blocks, slim, and slim in ONNX Runtime."""
    files = {name: folder / name for name in ("dense", "masked", "packed", "half", "blocks")}
    element = pruned(net, sparsity, "element", allocation)
    torch.save(net.state_dict(), files["dense"])
    torch.save(element.state_dict(), files["masked"])
    save_packed(element.state_dict(), files["packed"])
    save_packed(element.state_dict(), files["half"], half=True)
    count = parameters(net)
    return [
        Route("dense", count, 0.0, files["dense"], formats(net)),
        Route("masked", count, 0.0, files["masked"], formats(element)),
        Route("packed file", count, _loaded(element, files["packed"]), files["packed"]),
        Route("packed file, float16", count, _loaded(element, files["half"]), files["half"]),
        blocks(pruned(net, sparsity, "block8", allocation), files["blocks"]),
        *slim(pruned(net, sparsity, "filter", allocation), folder),
    ]


def _loaded(net: nn.Module, file: Path) -> float:
    """Difference of the network with the weights of a packed file."""
    again = copy.deepcopy(net)
    again.load_state_dict(load_packed(file))
    return difference(net, again, SIZE)


def blocks(net: nn.Module, file: Path) -> Route:
    """The block kernel, in its own memory format."""
    save_packed(net.state_dict(), file)
    net = net.to(memory_format=torch.channels_last)
    use_block_kernel(net)
    needs_dense_gradients(net, False)
    dense = copy.deepcopy(net)
    use_dense_kernel(dense)
    return Route("blocks, own kernel", parameters(net), difference(dense, net, SIZE), file, [net])


def slim(masked: nn.Module, folder: Path) -> list[Route]:
    """Without the pruned channels; in ONNX Runtime, too, where that is installed."""
    small, files = copy.deepcopy(masked), (folder / "slim", folder / "slim.onnx")
    shrink_([small], multiple=MULTIPLE)
    save_slim(small, files[0])
    count = parameters(small)
    found = [Route("slim", count, difference(masked, small, SIZE), files[0], formats(small))]
    try:
        export_onnx(small, files[1], SIZE)
        runtime = OnnxEncoder(files[1], torch.get_num_threads())
    except ValueError as missing:  # ConfigError: no ONNX here
        print(missing)
        return found
    off = difference(masked, runtime, SIZE)
    return [*found, Route("slim, ONNX Runtime", count, off, files[1], [runtime], trains=False)]
