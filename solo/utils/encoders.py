# SPDX-License-Identifier: MIT
"""The encoders of a method: the online one and, where there is one, its momentum copy."""

from __future__ import annotations

from torch import nn

#: attribute of a method by what messages call it
NAMES = {"backbone": "encoder", "momentum_backbone": "momentum encoder"}


_NAMED = "_encoder_names"  # kept by modules whose encoders have other names


def name_encoders(module: nn.Module, online: str, momentum: str | None) -> None:
    """Make known under which (dotted) names a module of somebody else's has its encoders."""
    module.__dict__[_NAMED] = (online, momentum)


def encoders_of(module: nn.Module) -> dict[str, nn.Module]:
    """The encoders of `module` by attribute, online first; those that it has."""
    named = [name for name in module.__dict__.get(_NAMED, ()) if name is not None]
    if named:
        return {name: module.get_submodule(name) for name in named}
    found = {name: getattr(module, name, None) for name in NAMES}
    return {name: encoder for name, encoder in found.items() if encoder is not None}
