# SPDX-License-Identifier: MIT
"""The schema of one entry of `augmentations`: one dict per pipeline. Needs no torch.

Every operation is a section with a probability; an absent section or a probability of 0 leaves
the operation out. `rrc` (random resized crop) is switched by `enabled` instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from solo.errors import ConfigError, did_you_mean
from solo.values import accepts, check_number, hints, limits_of, number


@dataclass(frozen=True)
class RRC:
    """`rrc`: random resized crop."""

    enabled: bool = False
    crop_min_scale: float = number(0.08, least=0, most=1)
    crop_max_scale: float = number(1.0, least=0, most=1)
    fallback: Literal["center", "random"] = "center"  # where a crop lies that fits nowhere


@dataclass(frozen=True)
class Probability:
    """An augmentation that only has a probability; `enabled` is accepted without effect."""

    prob: float = number(0.0, least=0, most=1)
    enabled: Any = None


@dataclass(frozen=True)
class ColorJitter(Probability):
    """`color_jitter`: how strongly brightness, contrast, saturation and hue vary."""

    brightness: float | None = number(None, least=0)
    contrast: float | None = number(None, least=0)
    saturation: float | None = number(None, least=0)
    hue: float | None = number(None, least=0, most=0.5)


@dataclass(frozen=True)
class Rotation(Probability):
    """`rotation`: by an angle from -degrees to degrees."""

    degrees: float | None = number(None, least=0, most=180)


@dataclass(frozen=True)
class Augmentation:
    """One entry of `augmentations`."""

    crop_size: int = field(metadata={"least": 1})
    num_crops: int = field(metadata={"least": 1})
    rrc: RRC = field(default_factory=RRC)
    color_jitter: ColorJitter = field(default_factory=ColorJitter)
    grayscale: Probability = field(default_factory=Probability)
    gaussian_blur: Probability = field(default_factory=Probability)
    solarization: Probability = field(default_factory=Probability)
    equalization: Probability = field(default_factory=Probability)
    horizontal_flip: Probability = field(default_factory=Probability)
    rotation: Rotation = field(default_factory=Rotation)
    padding: int | None = number(None, least=1)
    mean: list | None = None
    std: list | None = None


STRENGTHS = ("brightness", "contrast", "saturation", "hue")
SECTIONS: dict[str, type] = {
    name: kind for name, kind in hints(Augmentation).items() if is_dataclass(kind)
}
COLOURS = ("color_jitter", "grayscale")  # operations that mix the three channels
PLAIN_KEYS = tuple(item.name for item in fields(Augmentation) if item.name not in SECTIONS)


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
    for key in ("crop_size", "num_crops", "padding"):
        _check_integer(entry, key, where)
    checked = {key: entry[key] for key in PLAIN_KEYS if entry.get(key) is not None}
    for name, kind in SECTIONS.items():
        checked[name] = _section(entry.get(name) or {}, kind, f"{where}.{name}")
    if "padding" in checked and checked["rrc"]["enabled"]:
        raise ConfigError(
            f"{where}.padding is for crops of fixed size: set {where}.rrc.enabled to False."
        )
    _check_statistics(checked, where)
    return checked


def _plain(entry: Any, where: str) -> dict[str, Any]:
    from omegaconf import DictConfig, OmegaConf

    if isinstance(entry, DictConfig):
        if missing := sorted(OmegaConf.missing_keys(entry)):
            raise ConfigError(f"{where}.{missing[0]} is missing: it is ??? in the configuration.")
        entry = OmegaConf.to_container(entry, resolve=True)
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a mapping of operations, got {entry!r}.")
    return dict(entry)


def _section(section: Any, kind: type, where: str) -> dict[str, Any]:
    known = {item.name: item for item in fields(kind)}
    if not isinstance(section, Mapping):
        acting = [key for key in known if kind is RRC or key != "enabled"]
        raise ConfigError(f"{where}: expected a mapping with {', '.join(acting)}, got {section!r}.")
    _check_keys(section, tuple(known), where)
    if kind is RRC:
        return _checked_rrc({**vars(RRC()), **section}, known, where)
    section = dict(section)
    enabled = section.pop("enabled", None)
    section["prob"] = _number(section.get("prob") or 0.0, f"{where}.prob", known["prob"])
    if enabled is not None and bool(enabled) != bool(section["prob"]):
        warnings.warn(
            f"{where}.enabled={enabled} has no effect: {where}.prob={section['prob']:g} decides. "
            "Set it to 0 to leave the operation out."
        )
    for key in known if section["prob"] else ():  # the strengths of what is done at all
        if key not in ("prob", "enabled"):
            if section.get(key) is None:
                raise ConfigError(f"{where}: {key} is missing (needed because prob is not 0).")
            section[key] = _number(section[key], f"{where}.{key}", known[key])
    return section


def _checked_rrc(rrc: dict[str, Any], known: Mapping[str, Field], where: str) -> dict[str, Any]:
    if not isinstance(rrc["enabled"], bool):
        raise ConfigError(f"{where}.enabled must be True or False, got {rrc['enabled']!r}.")
    laws = get_args(hints(RRC)["fallback"])
    if rrc["fallback"] not in laws:
        hint = did_you_mean(str(rrc["fallback"]), laws)
        raise ConfigError(f"{where}.fallback: '{rrc['fallback']}' is unknown. {hint}")
    low, high = (
        _number(rrc[key], f"{where}.{key}", known[key])
        for key in ("crop_min_scale", "crop_max_scale")
    )
    if not 0 < low <= high:
        raise ConfigError(
            f"{where}: 0 < crop_min_scale <= crop_max_scale must hold, got {low} and {high}."
        )
    return rrc


def _check_statistics(entry: dict[str, Any], where: str) -> None:
    for key in ("mean", "std"):
        value = entry.get(key)
        if value is not None and (not isinstance(value, (list, tuple)) or not value):
            raise ConfigError(f"{where}.{key}: expected a number per channel, got {value!r}.")
        for item in value or ():
            _number(item, f"{where}.{key}")
    counts = [len(entry[key]) if entry.get(key) else 3 for key in ("mean", "std")]
    if counts[0] != counts[1]:
        raise ConfigError(f"{where}: mean has {counts[0]} numbers and std {counts[1]}.")
    _check_colours(entry, counts[0], where)


def _check_colours(entry: dict[str, Any], channels: int, where: str) -> None:
    colours = [name for name in COLOURS if channels != 3 and entry[name]["prob"]]
    if colours:
        raise ConfigError(
            f"{where}.{colours[0]} is for red, green and blue, and these images have {channels} "
            f"channel{'s' if channels > 1 else ''} (mean, std): set its prob to 0."
        )


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'. {did_you_mean(str(key), known)}")


def _check_integer(entry: Mapping[str, Any], key: str, where: str) -> None:
    value = entry.get(key)
    if value is not None and (not accepts(value, int) or value < 1):
        raise ConfigError(f"{where}.{key} must be a positive integer, got {value!r}.")


def _number(value: Any, where: str, item: Field | None = None) -> float:
    if not accepts(value, float):
        raise ConfigError(f"{where} must be a number, got {value!r}.")
    check_number(value, f"{where}={value}", {} if item is None else limits_of(item))
    return float(value)
