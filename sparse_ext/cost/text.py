# SPDX-License-Identifier: MIT
"""A cost table as text for a terminal; every number says what it is."""

from __future__ import annotations

from sparse_ext.cost.layers import CostTable

_NOTE = (
    "MACs: multiply-accumulates per image, FLOPs = 2 x MACs. Effective: kept weights only, modelled"
    "\nfrom the masks; a dense kernel computes the dense figure, so this is no measured speed."
)


def describe(table: CostTable, encoder: str) -> str:
    """Layers, totals over the prunable set and over the whole network."""
    size = "x".join(str(side) for side in table.input_shape)
    width = max([len(layer.name) for layer in table.layers] + [12])
    head = _row(width, "layer", "weight shape", "density", "MACs dense", "effective")
    lines = [f"{encoder} encoder, one image of {size}", "", head, "-" * len(head)]
    for layer in table.layers:
        shape = "x".join(str(side) for side in layer.shape)
        mark = "" if layer.prunable else "  dense by rule"
        macs = f"{layer.macs_dense:,}", f"{round(layer.macs_effective):,}"
        lines.append(_row(width, layer.name, shape, f"{layer.density:.4f}", *macs) + mark)
    if table.other_macs:
        other = f"{table.other_macs:,}"
        lines.append(_row(width, "attention", "", "", other, other))
    return "\n".join([*lines, "", *_totals(table), "", _NOTE])


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
