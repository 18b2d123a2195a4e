# SPDX-License-Identifier: MIT
"""The schema of one entry of `augmentations`: one dict per pipeline. Needs no torch.

Every operation is a section with a probability; an absent section or a probability of 0 leaves
the operation out. `rrc` (random resized crop) is switched by `enabled` instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from solo.errors import ConfigError, did_you_mean

STRENGTHS = ("brightness", "contrast", "saturation", "hue")
SECTIONS: dict[str, tuple[str, ...]] = {
    "rrc": ("enabled", "crop_min_scale", "crop_max_scale"),
    "color_jitter": ("prob", *STRENGTHS),
    "grayscale": ("prob",),
    "gaussian_blur": ("prob",),
    "solarization": ("prob",),
    "equalization": ("prob",),
    "horizontal_flip": ("prob",),
    "rotation": ("prob", "degrees"),
}
PLAIN_KEYS = ("crop_size", "num_crops", "mean", "std", "padding")


def checked_augmentation(entry: Mapping[str, Any], where: str = "augmentations") -> dict[str, Any]:
    """A plain copy of `entry` with every section present, checked.

    Args:
        entry: dict or DictConfig, one pipeline.
        where: its place in the configuration, for messages.

    Returns:
        dict with all of `SECTIONS` (each with `prob`, or `enabled` for `rrc`), `crop_size` and
        whatever of `num_crops`, `mean`, `std`, `padding` was given.

    Raises:
        ConfigError: unknown key (with the nearest one), missing `crop_size`, or a bad value.
    """
    entry = _plain(entry, where)
    _check_keys(entry, (*SECTIONS, *PLAIN_KEYS), where)
    if entry.get("crop_size") is None:
        raise ConfigError(f"{where}: crop_size is missing (side of the crop in pixels).")
    _check_integer(entry, "crop_size", where)
    _check_integer(entry, "num_crops", where)
    _check_integer(entry, "padding", where)
    checked = {key: entry[key] for key in PLAIN_KEYS if entry.get(key) is not None}
    for name, keys in SECTIONS.items():
        checked[name] = _section(entry.get(name) or {}, name, keys, f"{where}.{name}")
    if "padding" in checked and checked["rrc"]["enabled"]:
        raise ConfigError(
            f"{where}.padding is for crops of fixed size: set {where}.rrc.enabled to False."
        )
    _check_statistics(checked, where)
    return checked


def _plain(entry: Any, where: str) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(entry, DictConfig):
        entry = OmegaConf.to_container(entry, resolve=True)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a mapping of operations, got {entry!r}.")
    return dict(entry)


def _section(section: Any, name: str, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: expected a mapping with {', '.join(keys)}, got {section!r}.")
    section = dict(section)
    if name == "rrc":
        _check_keys(section, keys, where)
        return _checked_rrc(section, where)
    _check_keys(section, (*keys, "enabled"), where)
    if section.pop("enabled", None) is not None:
        warnings.warn(f"{where}.enabled has no effect; set {where}.prob to 0 to leave it out.")
    section["prob"] = _number(section.get("prob") or 0.0, f"{where}.prob", 0.0, 1.0)
    if name == "color_jitter" and section["prob"]:
        _check_strengths(section, where)
    if name == "rotation" and section["prob"]:
        section["degrees"] = _number(section.get("degrees"), f"{where}.degrees", 0.0, 180.0)
    return section


def _checked_rrc(section: dict[str, Any], where: str) -> dict[str, Any]:
    rrc = {"enabled": False, "crop_min_scale": 0.08, "crop_max_scale": 1.0, **section}
    if not isinstance(rrc["enabled"], bool):
        raise ConfigError(f"{where}.enabled must be True or False, got {rrc['enabled']!r}.")
    low = _number(rrc["crop_min_scale"], f"{where}.crop_min_scale", 0.0, 1.0)
    high = _number(rrc["crop_max_scale"], f"{where}.crop_max_scale", 0.0, 1.0)
    if not 0 < low <= high:
        raise ConfigError(
            f"{where}: 0 < crop_min_scale <= crop_max_scale must hold, got {low} and {high}."
        )
    return rrc


def _check_strengths(section: dict[str, Any], where: str) -> None:
    for strength in STRENGTHS:
        if section.get(strength) is None:
            raise ConfigError(f"{where}: {strength} is missing (needed because prob is not 0).")
        top = 0.5 if strength == "hue" else float("inf")
        _number(section[strength], f"{where}.{strength}", 0.0, top)


def _check_statistics(entry: dict[str, Any], where: str) -> None:
    for key in ("mean", "std"):
        value = entry.get(key)
        if value is not None and (not isinstance(value, (list, tuple)) or len(value) != 3):
            raise ConfigError(f"{where}.{key}: expected three numbers, got {value!r}.")
        for number in value or ():
            _number(number, f"{where}.{key}", float("-inf"), float("inf"))


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'. {did_you_mean(str(key), known)}")


def _check_integer(entry: Mapping[str, Any], key: str, where: str) -> None:
    value = entry.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(f"{where}.{key} must be a positive integer, got {value!r}.")


def _number(value: Any, where: str, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where} must be a number, got {value!r}.")
    if not low <= value <= high:
        raise ConfigError(f"{where} must lie between {low:g} and {high:g}, got {value}.")
    return float(value)
