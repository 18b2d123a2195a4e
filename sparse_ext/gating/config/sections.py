# SPDX-License-Identifier: MIT
"""The schema of the `gating:` section: frozen dataclasses, the only place with its defaults.

`+gating=vicreg_dual gating.budget=0.3` works behind any YAML whose backbone is a ResNet.
Importing this module does not import torch.
"""

from __future__ import annotations

from typing import Any

from solo.registry import Registry
from sparse_ext.config import reading
from sparse_ext.gating.config.base import GatingConfig
from sparse_ext.gating.config.channel import VICRegDualConfig, VICRegGatingConfig
from sparse_ext.gating.config.saliency import DGCConfig, FBSConfig
from sparse_ext.gating.config.spatial import CDGConfig, CGNetConfig

_METHODS: dict[str, type[GatingConfig]] = {
    "vicreg_gating": VICRegGatingConfig,
    "vicreg_dual": VICRegDualConfig,
    "cgnet": CGNetConfig,
    "cdg": CDGConfig,
    "fbs": FBSConfig,
    "dgc": DGCConfig,
}
_PAGES = "sparse_ext.gating.methods"

#: the settings of every gating method, by its name
METHODS: Registry[type[GatingConfig]] = Registry("gating method", _METHODS)

#: the methods themselves, by the same names (`sparse_ext.gating.method.GatingMethod`)
GATES: Registry[Any] = Registry(
    "gating method",
    {
        "vicreg_gating": f"{_PAGES}.channel.method:ChannelGating",
        "vicreg_dual": f"{_PAGES}.channel.method:ChannelDual",
        "cgnet": f"{_PAGES}.spatial.cgnet:CGNet",
        "cdg": f"{_PAGES}.spatial.cdg:CDG",
        "fbs": f"{_PAGES}.saliency.fbs:FBS",
        "dgc": f"{_PAGES}.saliency.dgc:DGC",
    },
)


def register_gating_method(name: str, config: type[GatingConfig], method: Any) -> None:
    """Make a gating method known, so that `+gating=NAME` trains with it.

    Args:
        name: what users write; also the default of the field `name` of `config`.
        config: a frozen dataclass, subclass of `GatingConfig`, with the method's settings.
        method: a subclass of `sparse_ext.gating.method.GatingMethod`, or where it is:
            `my_package.my_gates:MyGates`.

    Raises:
        ConfigError: `config` is not such a class, or there is another method of that name.
    """
    reading.check_settings(name, config, GatingConfig)
    METHODS.register(name, config)
    GATES.register(name, method)
    reading.store("gating", {name: config})


def build(section: Any) -> GatingConfig:
    """The checked configuration of a `gating:` section (see `sparse_ext.config.reading.build`)."""
    return reading.build(section, "gating", METHODS)


def store() -> None:
    """Register every method as an entry of Hydra's group `gating`; twice changes nothing."""
    reading.store("gating", METHODS)
