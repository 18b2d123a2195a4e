# SPDX-License-Identifier: MIT
"""The encoders of a method: the online one and, where there is one, its momentum copy."""

from __future__ import annotations

from torch import nn

#: attribute of a method by what messages call it
NAMES = {"backbone": "encoder", "momentum_backbone": "momentum encoder"}


def encoders_of(module: nn.Module) -> dict[str, nn.Module]:
    """The encoders of `module` by attribute, online first; those that it has."""
    found = {name: getattr(module, name, None) for name in NAMES}
    return {name: encoder for name, encoder in found.items() if encoder is not None}
