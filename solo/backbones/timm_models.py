# SPDX-License-Identifier: MIT
"""Any timm model as an encoder, by its timm name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from torch import nn

from solo.backbones.options import keywords
from solo.backbones.registry import BACKBONES
from solo.errors import ConfigError, did_you_mean


def timm_builder(name: str) -> Callable[..., nn.Module]:
    """A builder `(method, **kwargs)` of timm's model `name`, without its classifier.

    Raises:
        ConfigError: timm does not know the model; names the nearest that exist.
    """
    if not timm.is_model(name):
        near = did_you_mean(name, BACKBONES)
        if near.startswith("Valid"):
            near = did_you_mean(name, {*BACKBONES, *timm.list_models()})
        if near.startswith("Valid"):
            near = f"{did_you_mean(name, BACKBONES)[:-1]}, or any model of timm.list_models()."
        raise ConfigError(f"backbone.name: there is no encoder '{name}'. {near}")
    return partial(_build, name)


def _build(name: str, method: str | None = None, **kwargs: Any) -> nn.Module:
    """Build timm's model `name` with `num_classes=0`; an option it lacks is a ConfigError."""
    try:
        return timm.create_model(name, **{"num_classes": 0, **kwargs})
    except TypeError as error:
        found = re.search(
            r"(?:(\w+)\.)?\w+\(\) got an unexpected keyword argument '(\w+)'", str(error)
        )
        if not found or found[2] not in kwargs:
            raise
        module = sys.modules[timm.model_entrypoint(name).__module__]
        owner = getattr(module, found[1] or "", None)
        options = keywords(owner) if owner else set()
        raise ConfigError(
            f"backbone.kwargs.{found[2]}: timm's '{name}' has no such option. "
            f"{did_you_mean(found[2], options)}"
        ) from error
