# SPDX-License-Identifier: MIT
"""A cycle model of training on a tensor-core accelerator with 8x8 blocks (SyncCP, Table 7).

The paper takes "the training accelerator specifications" of Venkataramanaiah et al. (ESSCIRC 2022);
array size, clock and memories are not published. Here every quantity is counted from the real
masks, and what is not known is an assumption of `Machine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from solo.backbones import input_channels
from sparse_ext.compat import unwrapped
from sparse_ext.cost.per_layer import COUNTED
from sparse_ext.masks.granularity import Block
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.schedules import cubic

BLOCK = 8


@dataclass(frozen=True)
class Machine:
    """The accelerator, as far as one must assume.

    Attributes:
        cores: output pixels at once; a core multiplies one 8x8 block by one pixel per cycle.
        lanes: numbers per cycle of the vector unit.
        bandwidth: bytes per cycle to and from DRAM.
        number: bytes of a weight or activation (FP8).
        batch: images per optimizer step; weights are fetched once per layer and phase for all.
        forward_passes: vector passes over every convolution's output (norm, ReLU), forward.
        backward_passes: the same, backward.
        update_passes: vector passes over all parameters per step (optimizer, momentum average).
        dense_gradients: gradients of pruned weights are computed too, as regrowth needs them.
    """

    cores: int = 16
    lanes: int = 16
    bandwidth: int = 16
    number: int = 1
    batch: int = 256
    forward_passes: int = 3
    backward_passes: int = 5
    update_passes: int = 6
    dense_gradients: bool = True

    def describe(self) -> list[str]:
        """The assumptions about the machine, one line each."""
        lines = [f"  {f.name} = {getattr(self, f.name)}" for f in fields(self)]
        return [
            "assumptions:",
            *lines,
            "  one core: one 8x8 block of weights, one output pixel, one cycle",
            "  phase = max(multiplications, DRAM) + vector passes; nothing else overlaps",
            "  DRAM per phase: the layer's input and output maps of the batch, its kept weights",
            "  a step: two views, each forward, backward and weight gradient online, forward of",
            "  the momentum encoder if there is one; no backward pass into the images",
        ]


@dataclass(frozen=True)
class Layer:
    """What the model needs of a layer.

    Attributes:
        name: its module.
        blocks: 8x8 blocks of its weight, edges filled up, at every kernel position.
        weights: numbers in the weight.
        inputs: numbers in its input map.
        outputs: numbers in its output map.
        pixels: positions of the output map.
        first: it reads the images, so it has no backward pass.
        vector: a norm or activation follows (convolutions).
    """

    name: str
    blocks: int
    weights: int
    inputs: int
    outputs: int
    pixels: int
    first: bool
    vector: bool


def measure(net: nn.Module, size: int) -> list[Layer]:
    """The layers of an encoder, by one forward pass of one image."""
    net = unwrapped(net)
    found: list[Layer] = []
    names: dict[nn.Module, str] = {
        module: name for name, module in net.named_modules() if isinstance(module, COUNTED)
    }

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        channels = output.shape[1] if output.ndim == 4 else output.shape[-1]
        groups = Block(BLOCK, pad=True).n_groups(tuple(weight.shape))
        found.append(
            Layer(
                *(names[module], groups, weight.numel(), inputs[0].numel(), output.numel()),
                pixels=output.numel() // channels,
                first=not found,
                vector=output.ndim == 4,
            )
        )

    hooks = [module.register_forward_hook(record) for module in names]
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, input_channels(net), size, size))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return found


def kept_blocks(net: nn.Module) -> dict[str, float]:
    """Share of the 8x8 blocks, per masked layer, in which any weight is kept."""
    block, found = Block(BLOCK, pad=True), {}
    for name, layer in masked_layers(net).items():
        kept = block.groups_kept(layer.mask)
        found[name] = int(kept.count_nonzero()) / kept.numel()
    return found


def cycles(
    layers: Sequence[Layer],
    online: Mapping[str, float],
    momentum: Mapping[str, float] | None,
    machine: Machine,
) -> float:
    """Modelled cycles of one optimizer step on the machine.

    Args:
        layers: of the encoder.
        online: share of blocks kept per layer; layers that are not named are dense.
        momentum: the same for the momentum encoder; None for a method without one.
        machine: the accelerator.
    """
    total = 0.0
    for layer in layers:
        share = online.get(layer.name, 1.0)
        forward, backward = machine.forward_passes, machine.backward_passes
        view = _phase(layer, share, forward, machine)
        view += _vector(layer, backward, machine)
        if not layer.first:
            view += _phase(layer, share, 0, machine)
        view += _phase(layer, 1.0 if machine.dense_gradients else share, 0, machine)
        if momentum is not None:
            view += _phase(layer, momentum.get(layer.name, 1.0), forward, machine)
        total += 2 * view
    weights = sum(layer.weights for layer in layers)
    return total + machine.update_passes * weights / machine.lanes


def _phase(layer: Layer, share: float, passes: int, machine: Machine) -> float:
    multiply = math.ceil(layer.pixels / machine.cores) * layer.blocks * share * machine.batch
    maps = (layer.inputs + layer.outputs) * machine.batch
    dram = machine.number * (maps + layer.weights * share) / machine.bandwidth
    return max(multiply, dram) + _vector(layer, passes, machine)


def _vector(layer: Layer, passes: int, machine: Machine) -> float:
    return passes * layer.outputs * machine.batch / machine.lanes if layer.vector else 0.0


@dataclass(frozen=True)
class SpeedUp:
    """Dense over sparse cycles of a run, with the parts that they consist of.

    Attributes:
        final: of a step with the masks as they are.
        run: of all steps up to now: masks of the schedule between the initial and these.
        online: share of pruned blocks of the online encoder's masked layers.
        momentum: of the momentum encoder's; None without one.
    """

    final: float
    run: float
    online: float
    momentum: float | None


def path(state: Mapping) -> list[tuple[float, int]]:
    """(progress from the initial to the final sparsity, number of steps) along a run's schedule.

    Args:
        state: `sparse_state` of a checkpoint.
    """
    steps, ramp = int(state["t"]), state["ramp"]
    if ramp is None:
        begins, aims = state["begins"], state["aims"]
        return [(1.0 if begins == aims else 0.0, steps)]
    start, period, n = ramp
    parts, done = [(0.0, min(start, steps))], min(start, steps)
    for index in range(n + 1):
        until = steps if index == n else min(start + (index + 1) * period, steps)
        parts.append((cubic(0.0, 1.0, index, n), until - done))
        done = until
    return parts


def speed_up(
    layers: Sequence[Layer],
    now: Sequence[Mapping[str, float]],
    initial: Sequence[Mapping[str, float]],
    schedule: Sequence[tuple[float, int]],
    machine: Machine,
) -> SpeedUp:
    """The modelled speed-up of one run over dense training.

    Args:
        layers: of the encoder.
        now: share of blocks kept per layer, online first.
        initial: the same before the ramp; a layer's share is taken to move in step with sparsity.
        schedule: of `path`; progress is relative to the masks as they are.
        machine: the accelerator.
    """
    pair = len(now) > 1
    dense = cycles(layers, {}, {} if pair else None, machine)

    def at(progress: float) -> float:
        shares = [
            {n: first[n] + (last[n] - first[n]) * progress for n in last}
            for first, last in zip(initial, now, strict=True)
        ]
        return cycles(layers, shares[0], shares[1] if pair else None, machine)

    reached = schedule[-1][0] or 1.0
    steps = sum(n for _, n in schedule)
    total = sum(n * at(min(1.0, p / reached)) for p, n in schedule if n)
    sizes = {layer.name: layer.blocks for layer in layers}
    pruned = [1 - sum(k * sizes[n] for n, k in m.items()) / sum(sizes[n] for n in m) for m in now]
    run = dense * steps / total if steps else 1.0
    return SpeedUp(dense / at(1.0), run, pruned[0], pruned[1] if pair else None)
