# SPDX-License-Identifier: MIT
"""Keys and types are checked against the schema, with the nearest valid name."""

import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from solo.args.check import check, fill, require, select
from solo.errors import ConfigError, SoloError
from solo.values import unknown_key

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Inner:
    size: int
    mode: Literal["a", "b"] = "a"
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    flag: bool = False
    note: str | None = None
    free: dict = field(default_factory=dict)
    any: Any = None


def cfg(**kwargs):
    return OmegaConf.create({"name": "n", "inner": {"size": 1}, **kwargs})


def test_valid_values_pass():
    good = cfg(flag=True, note=None, free={"x": 1}, any=[1], max_steps=3)
    good.inner.rate = 1  # an integer is a number
    check(good, Outer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": 1}, "unknown key 'nmae'. Did you mean 'name'?"),
        ({"max_epocs": 1}, "unknown key 'max_epocs'. Did you mean 'max_epochs'"),
        ({"inner": {"size": 1, "mod": "a"}}, "unknown key 'inner.mod'. Did you mean 'mode'?"),
        ({"inner": {"size": "big"}}, "'inner.size' must be an integer, not 'big' (str)"),
        ({"inner": {"size": 1.5}}, "'inner.size' must be an integer, not 1.5 (float)"),
        ({"inner": {"size": True}}, "'inner.size' must be an integer, not True (bool)"),
        ({"inner": {"size": 1, "rate": "x"}}, "'inner.rate' must be a number"),
        ({"inner": {"size": 1, "mode": "c"}}, "'inner.mode' must be one of 'a', 'b', not 'c'"),
        ({"inner": 3}, "'inner' must be a section with keys, not 3 (int)"),
        ({"flag": "yes"}, "'flag' must be true or false, not 'yes'"),
        ({"note": 3}, "'note' must be a string or null, not 3"),
        ({"free": [1]}, "'free' must be a section, not [1] (list)"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ConfigError) as error:
        check(cfg(**change), Outer)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, (SoloError, AssertionError, ValueError))


def test_names_of_extensions_and_of_the_trainer_are_valid():
    check(cfg(sparse={"whatever": 1}, gradient_clip_val=1.0), Outer, extra=["sparse"])
    with pytest.raises(ConfigError, match=r"unknown key 'sprase'. Did you mean 'sparse'"):
        check(cfg(sprase=1), Outer, extra=["sparse"])


def test_keys_of_old_recipes_warn_once_each():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(cfg(augmentations_cfg="x", wandb_cfg="y"), Outer)
    assert sorted(str(w.message).split("'")[1] for w in caught) == [
        "augmentations_cfg",
        "wandb_cfg",
    ]


def test_a_key_that_nothing_resembles_warns_and_strict_refuses_it():
    with pytest.warns(UserWarning, match=r"unknown key 'zzz': it has no effect"):
        check(cfg(zzz=1), Outer, extra=["strict"])
    with pytest.warns(UserWarning, match=r"unknown key 'inner\.qqqqq': it has no effect"):
        check(cfg(inner={"size": 1, "qqqqq": 1}), Outer, extra=["strict"])
    for change in ({"zzz": 1}, {"inner": {"size": 1, "qqqqq": 1}}):
        with pytest.raises(ConfigError, match=r"unknown key '(zzz|inner\.qqqqq)'\. Valid names"):
            check(cfg(strict=True, **change), Outer, extra=["strict"])


@pytest.mark.parametrize(
    ("key", "given", "refused"),
    [
        ("temprature", ["temperature"], True),  # written beside the right one
        ("lrr", ["lr"], True),
        ("output_dim", ["proj_output_dim"], False),
        ("output_dim", [], True),
        ("momentum_classifier", ["temperature"], False),
    ],
)
def test_what_counts_as_a_misspelling(key, given, refused):
    options = ["temperature", "lr", "proj_output_dim"]
    if refused:
        with pytest.raises(ConfigError, match=f"unknown key 'a.{key}'. Did you mean"):
            unknown_key(f"a.{key}", options, [key, *given])
    else:
        with pytest.warns(UserWarning, match="no effect"):
            unknown_key(f"a.{key}", options, [key, *given])


def test_interpolation_that_leads_nowhere():
    with pytest.raises(ConfigError, match="'note' cannot be read"):
        check(cfg(note="${nowhere}"), Outer)


def test_fill_sets_defaults_and_is_idempotent():
    made = OmegaConf.create({"inner": {"size": 4, "mode": "None"}})
    fill(made, Outer, "inner")
    once = OmegaConf.to_container(made)
    assert once == {"inner": {"size": 4, "mode": None, "rate": 0.5}}
    fill(made, Outer, "inner")
    assert OmegaConf.to_container(made) == once


def test_select_reads_the_word_none_as_null():
    made = OmegaConf.create({"a": {"b": "None", "c": 0}})
    assert select(made, "a.b", 3) is None
    assert select(made, "a.c", 3) == 0
    assert select(made, "x.y", 3) == 3


@pytest.mark.parametrize("value", [{}, {"name": "???"}, {"name": None}])
def test_missing_keys(value):
    made = OmegaConf.create({"inner": {"size": 1}, **value})
    with pytest.raises(ConfigError, match="the key 'name' is missing"):
        require(made, Outer)
    with pytest.raises(ConfigError, match=r"the key 'inner.size' is missing"):
        require(OmegaConf.create({"name": "x"}), Outer)
