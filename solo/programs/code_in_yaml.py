# SPDX-License-Identifier: MIT
"""A YAML is data: what would make Hydra build and run objects named in one is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from solo.errors import ConfigError

ALLOW = "allow_code"
# Hydra's own parts, and packages that are installed as its plugins
_OF_HYDRA = ("hydra._internal.core_plugins.", "hydra_plugins.")
_OF_PYTHON = ("logging.", "colorlog.")


def allowed(argv: list[str]) -> bool:
    """Whether the command line says `++allow_code=True`; takes it out of `argv`, in place."""
    said = [a for a in argv[1:] if a.lstrip("+").partition("=")[0] == ALLOW]
    for argument in said:
        argv.remove(argument)
    return any(argument.partition("=")[2].lower() == "true" for argument in said)


def refuse_code(folder: Path, name: str, overrides: list[str]) -> None:
    """Raise ConfigError if Hydra would build an object that a configuration names.

    Hydra does so for callbacks, launchers, sweepers and logging, before the program begins.

    Args:
        folder: of the configuration.
        name: of its file.
        overrides: the command line's.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    try:
        with initialize_config_dir(str(folder.resolve()), version_base="1.2"):
            # what else the command line says changes no part of Hydra's
            asked = [o for o in overrides if o.lstrip("+~").startswith("hydra")]
            hydra = compose(name, asked, return_hydra_config=True).hydra
    except Exception:  # Hydra will say what is wrong
        GlobalHydra.instance().clear()
        return
    for key, value in _calls(OmegaConf.to_container(hydra, resolve=False), "hydra"):
        raise ConfigError(
            f"{key}={value}: a configuration is data, and this one would make Hydra build and run "
            f"that object. Remove the key, or add ++{ALLOW}=True if you trust the file."
        )


def _calls(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Keys that name something to call, with what they name."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        name = f"{path}.{key}"
        if isinstance(value, (dict, list)):
            yield from _calls(value, name)
        elif _makes_an_object(key, str(value)):
            yield name, str(value)


def _makes_an_object(key: Any, value: str) -> bool:
    if key == "_target_":
        return not value.startswith(_OF_HYDRA)
    return key in ("()", "class") and not value.startswith(_OF_PYTHON)
