# SPDX-License-Identifier: MIT
"""The schema of the `sparse:` section: frozen dataclasses, the only place with its defaults.

`build` turns what a user wrote (a name, a mapping) into one of them and names every mistake.
`store` registers each as a Hydra config group entry, so that `+sparse=synccp sparse.final=0.9`
works behind any YAML. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from solo.errors import ConfigError, did_you_mean
from solo.registry import Registry
from sparse_ext.config.base import SparseConfig
from sparse_ext.config.gradual import GMPConfig, GraNetConfig, GraNetSSLConfig
from sparse_ext.config.granularity_names import spoken
from sparse_ext.config.living_weights import MCPConfig, SDCLRConfig, SDConfig, SRSTEConfig
from sparse_ext.config.pruned_once import (
    ASPConfig,
    FixedMasksConfig,
    GraSPConfig,
    OneShotConfig,
    RandomConfig,
    SNIPConfig,
)
from sparse_ext.config.reading import check_settings, fill
from sparse_ext.config.rigl import RigLConfig, RigLITOPConfig
from sparse_ext.config.synccp import CSIConfig, SyncCPConfig

__all__ = [
    "METHODS",
    "CSIConfig",
    "GMPConfig",
    "SparseConfig",
    "SyncCPConfig",
    "build",
    "defaults",
    "register_method",
    "store",
    "to_dict",
]


_METHODS: dict[str, type[SparseConfig]] = {
    "synccp": SyncCPConfig,
    "gmp": GMPConfig,
    "granet": GraNetConfig,
    "granet_ssl": GraNetSSLConfig,
    "rigl": RigLConfig,
    "rigl_itop": RigLITOPConfig,
    "fixed": FixedMasksConfig,
    "random": RandomConfig,
    "oneshot": OneShotConfig,
    "snip": SNIPConfig,
    "grasp": GraSPConfig,
    "asp": ASPConfig,
    "sr_ste": SRSTEConfig,
    "sd": SDConfig,
    "sdclr": SDCLRConfig,
    "mcp": MCPConfig,
}
_PAGES = "sparse_ext.pruning.methods"

#: the settings of every pruning method, by its name
METHODS: Registry[type[SparseConfig]] = Registry("pruning method", _METHODS)

#: the pruner of every method, by the same names (`sparse_ext.pruning.pruner.Pruner`)
PRUNERS: Registry[Any] = Registry(
    "pruning method",
    {
        "synccp": f"{_PAGES}.synccp:SyncCP",
        "gmp": f"{_PAGES}.gmp:GMP",
        "granet": f"{_PAGES}.granet:GraNet",
        "granet_ssl": f"{_PAGES}.granet_ssl:GraNetSSL",
        "rigl": f"{_PAGES}.rigl:RigL",
        "rigl_itop": f"{_PAGES}.rigl_itop:RigLITOP",
        "fixed": f"{_PAGES}.fixed:Fixed",
        "random": f"{_PAGES}.random:Random",
        "oneshot": f"{_PAGES}.oneshot:OneShot",
        "snip": f"{_PAGES}.snip:SNIP",
        "grasp": f"{_PAGES}.grasp:GraSP",
        "asp": f"{_PAGES}.asp:ASP",
        "sr_ste": f"{_PAGES}.sr_ste:SRSTE",
        "sd": f"{_PAGES}.sd:SD",
        "sdclr": f"{_PAGES}.sdclr:SDCLR",
        "mcp": f"{_PAGES}.mcp:MCP",
    },
)


def register_method(name: str, config: type[SparseConfig], pruner: Any) -> None:
    """Make a pruning method known, so that `+sparse=NAME` trains with it.

    Args:
        name: what users write; also the default of the field `name` of `config`.
        config: a frozen dataclass, subclass of `SparseConfig`, with the method's settings.
        pruner: a subclass of `sparse_ext.pruning.pruner.Pruner`, or where it is:
            `my_package.my_methods:MyPruner`.

    Raises:
        ConfigError: `config` is not such a class, or there is another method of that name.
    """
    check_settings(name, config, SparseConfig)
    METHODS.register(name, config)
    PRUNERS.register(name, pruner)
    _store(name, config)


def build(section: str | Mapping[str, Any] | SparseConfig) -> SparseConfig:
    """The checked configuration of a `sparse:` section.

    Args:
        section: a method's name, or a mapping with `name` and any of that method's keys.

    Raises:
        ConfigError: for an unknown method or key, a wrong type, or values that contradict.
    """
    if isinstance(section, SparseConfig):
        return section
    if isinstance(section, str):
        section = {"name": section}
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"sparse={section!r}: expected a method's name or a mapping with its keys. "
            f"{did_you_mean('', METHODS)}"
        )
    name = section.get("name")
    if name is None:
        raise ConfigError(f"sparse.name is missing. {did_you_mean('', METHODS)}")
    method = METHODS.find(name, "sparse.name")
    if "granularity" in section:
        section = {**section, "granularity": spoken(section["granularity"])}
    return fill(method, section, "sparse")


def to_dict(config: SparseConfig) -> dict[str, Any]:
    """Plain data (lists for tuples) that `build` turns into the same configuration again."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def defaults(schema: type[SparseConfig]) -> dict[str, Any]:
    """Every key with its default as plain data; None where it depends on other keys."""
    values = {f.name: f.default for f in fields(schema)}
    nested = {
        f.name: asdict(f.default_factory())
        for f in fields(schema)
        if f.default_factory is not MISSING
    }
    lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    return values | nested | lists


def store() -> None:
    """Register every method as an entry of Hydra's group `sparse`; twice changes nothing."""
    for name, schema in METHODS.items():
        _store(name, schema)


def _store(name: str, schema: type[SparseConfig]) -> None:
    from hydra.core.config_store import ConfigStore

    # plain data: a frozen dataclass would become a read-only node that nobody can override
    ConfigStore.instance().store(group="sparse", name=name, node=defaults(schema))
