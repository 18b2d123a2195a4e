# SPDX-License-Identifier: MIT
"""A cost table as text for a terminal; every number says what it is."""

from __future__ import annotations

from collections.abc import Mapping

from sparse_ext.cost.memory import Memory
from sparse_ext.cost.per_layer import CostTable

_NOTE = (
    "MACs: multiply-accumulates per image, FLOPs = 2 x MACs. Effective: kept weights only, modelled"
    "\nfrom the masks; a dense kernel computes the dense figure, so this is no measured speed."
)
_TRAINING = "Training up to here over dense training (modelled MACs, masks of every step): {}."


def describe(
    table: CostTable, encoder: str, size: Memory, training: Mapping[str, float] | None = None
) -> str:
    """Layers, totals over the prunable set and over the whole network, memory, training."""
    image = "x".join(str(side) for side in table.input_shape)
    width = max([len(layer.name) for layer in table.layers] + [18])
    head = _row(width, "layer", "weight shape", "density", "MACs dense", "effective")
    lines = [f"{encoder} encoder, one image of {image}", "", head, "-" * len(head)]
    for layer in table.layers:
        shape = "x".join(str(side) for side in layer.shape)
        mark = "" if layer.prunable else "  dense by rule"
        macs = f"{layer.macs_dense:,}", f"{round(layer.macs_effective):,}"
        lines.append(_row(width, layer.name, shape, f"{layer.density:.4f}", *macs) + mark)
    if table.other_macs:
        other = f"{table.other_macs:,}"
        mark = "  no mask: products of attention, each counted once"
        lines.append(_row(width, "attention", "", "", other, other) + mark)
    lines += ["", *_totals(table), _memory(size)]
    if training:
        ratios = ", ".join(f"{name} {ratio:.3f}" for name, ratio in training.items())
        lines.append(_TRAINING.format(ratios))
    return "\n".join([*lines, "", _NOTE])


def _row(width: int, name: str, shape: str, density: str, dense: str, effective: str) -> str:
    return f"{name:{width}}  {shape:>18} {density:>8} {dense:>14} {effective:>14}"


def _totals(table: CostTable) -> list[str]:
    lines = []
    for what, part in (("prunable set", table.prunable), ("whole network", table)):
        lines.append(
            f"{what:14} {part.parameters:>12,} parameters, {part.parameters_kept:,} kept "
            f"(sparsity {part.sparsity:.4f}); MACs dense {part.macs_dense:,}, effective "
            f"{round(part.macs_effective):,} ({part.mac_ratio:.3f}); FLOPs dense "
            f"{part.flops_dense:,}"
        )
    return lines


def _memory(size: Memory) -> str:
    dense, kept, total = (f"{x / 1e6:.2f} MB" for x in (size.dense, size.kept, size.total))
    return (
        f"{'memory':14} {dense} dense (float32, all parameters), {kept} kept without an index, "
        f"{total} with one"
    )
