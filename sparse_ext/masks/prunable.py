# SPDX-License-Identifier: MIT
"""Which weights of an encoder are prunable, and why the others stay dense.

Section 0.2 of the algorithms specification: convolutions and linear layers, shortcuts included;
never biases, norms or a classifier; the stem only if asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor, nn

from solo.errors import ConfigError, did_you_mean
from sparse_ext.masks.granularity import Element, Granularity
from sparse_ext.masks.masked_layers import MASKED_TYPES, Masked, computes_weight

_HEADS = ("fc", "head", "heads", "classifier")
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Selection(NamedTuple):
    """Which layers of an encoder are pruned, and why the others are not.

    Attributes:
        layers: prunable modules by fully qualified name, in module order. They make up N.
        dense: reason per layer that has a weight but stays dense.
    """

    layers: dict[str, nn.Module]
    dense: dict[str, str]

    def describe(self) -> str:
        """Lines for a run's log: what is pruned, and each dense layer with its reason."""
        n = sum(module.weight.numel() for module in self.layers.values())  # type: ignore
        lines = [f"Prunable: {len(self.layers)} layers, {n:,} weights."]
        return "\n".join(lines + [f"  dense: {name} ({why})" for name, why in self.dense.items()])


def select(
    module: nn.Module,
    stem_dense: bool = True,
    exclude: Iterable[str] = (),
    granularity: Granularity | None = None,
    obstacle: Callable[[tuple[int, ...]], str] = lambda shape: "",
) -> Selection:
    """Sort the layers of an encoder into prunable and dense.

    Args:
        module: the encoder, plain or already masked.
        stem_dense: leave the first convolution dense (for a ViT: the patch embedding).
        exclude: globs of fully qualified names that stay dense.
        granularity: layers whose shape it cannot group stay dense; by default any shape will do.
        obstacle: why a layer of that weight shape stays dense all the same; empty = it does not.

    Raises:
        ConfigError: if a glob matches no layer, or nothing is left to prune.
    """
    weighted = dict(_weighted(module))
    exclude = tuple(exclude)
    for glob in exclude:
        if not any(fnmatchcase(name, glob) for name in weighted):
            raise ConfigError(
                f"exclude: no layer is called '{glob}'. {did_you_mean(glob, weighted)}"
            )
    stem = next((n for n, m in weighted.items() if isinstance(m, nn.Conv2d)), None)
    linear = [n for n, m in weighted.items() if isinstance(m, nn.Linear)]
    classifiers = set({n.split(".")[0]: n for n in linear if n.split(".")[0] in _HEADS}.values())
    granularity = granularity or Element()
    layers: dict[str, nn.Module] = {}
    dense: dict[str, str] = {}
    misfits: set[str] = set()
    seen: dict[int, str] = {}
    for name, layer in weighted.items():
        why = _reason(name, layer, stem if stem_dense else None, exclude, classifiers)
        if not why and (maker := computes_weight(layer)):
            raise ConfigError(
                f"'{name}' has no weight of its own: {maker} computes it before every pass, so a "
                f"mask would have no effect. Take that off first (torch.nn.utils."
                f"remove_weight_norm, remove_spectral_norm, prune.remove), or leave the layer "
                f"dense with sparse.exclude={name}."
            )
        if not why:
            weight: Tensor = layer.weight  # type: ignore[assignment]
            why = granularity.obstacle(weight, layer) or obstacle(tuple(weight.shape))
            misfits |= {why} - {""}
        owner = seen.setdefault(id(layer.weight), name)
        if owner != name:
            why = why or f"shares its weight with {owner}"
        if why:
            dense[name] = why
        else:
            layers[name] = layer
    if not layers and any(why in misfits for why in dense.values()):
        examples = [f"{name}: {why}" for name, why in dense.items() if why in misfits]
        raise ConfigError(
            f"sparse.granularity={granularity} fits no layer of this {type(module).__name__} "
            f"({'; '.join(examples[:3])}{', ...' if len(examples) > 3 else ''}). Choose a smaller "
            f"one, or element."
        )
    if not layers:
        reasons = "; ".join(f"{name}: {why}" for name, why in dense.items()) or "it has no layer"
        raise ConfigError(f"{type(module).__name__} has nothing to prune ({reasons}).")
    return Selection(layers, dense | _others(module))


def prunable(
    module: nn.Module,
    stem_dense: bool = True,
    exclude: Iterable[str] = (),
    granularity: Granularity | None = None,
) -> dict[str, nn.Module]:
    """The prunable layers by name; `select` also gives the reasons for the others."""
    return select(module, stem_dense, exclude, granularity).layers


def _others(module: nn.Module) -> dict[str, str]:
    """Matrices that belong to no layer: position tables, tokens, projections of attention."""
    weighted = {id(m.weight) for _, m in _weighted(module)}
    return {
        name: "no weight of a convolution or linear layer"
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in weighted
    }


def _weighted(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in module.named_modules() if isinstance(m, _WEIGHTED))


def _reason(
    name: str, layer: nn.Module, stem: str | None, exclude: tuple[str, ...], classifiers: set[str]
) -> str:
    if name == stem:
        return "stem"
    if name in classifiers:
        return "classifier"
    glob = next((glob for glob in exclude if fnmatchcase(name, glob)), None)
    if glob is not None:
        return f"excluded by '{glob}'"
    if type(layer) not in MASKED_TYPES and not isinstance(layer, Masked):
        return f"{type(layer).__name__} may compute its weight"
    return ""
