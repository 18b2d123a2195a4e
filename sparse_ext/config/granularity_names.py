# SPDX-License-Identifier: MIT
"""How granularities are written. Free of torch, so that a configuration is checked at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from solo.errors import ConfigError, did_you_mean
from solo.registry import Registry


class Form(NamedTuple):
    """One way of writing a granularity and what it stands for.

    Attributes:
        pattern: regular expression of the whole text.
        build: `build(spelling)` makes the `sparse_ext.masks.granularity.Granularity`; or where
            that function is: `module:function`.
        some_survive: a pruned unit keeps some of its weights (N:M).
        channels: a channel can lose all its weights, so that it can be removed physically.
    """

    pattern: str
    build: Callable[[Spelling], Any] | str
    some_survive: bool = False
    channels: bool = False


class Spelling(NamedTuple):
    """A granularity as its parts: kind, numbers and variants.

    Attributes:
        kind: `element`, `nm`, `block`, `filter`, or the name it was registered under.
        n: members that a pruned N:M group keeps.
        m: members of an N:M group.
        size: edge of a block.
        merged: one block takes all kernel positions.
        padded: blocks may hang over the edges of a weight.
        form: how it was written.
        groups: named parts of the form's pattern.
    """

    kind: str
    n: int = 0
    m: int = 0
    size: int = 0
    merged: bool = False
    padded: bool = False
    form: Form | None = None
    groups: Mapping[str, str | None] = {}


_BUILDERS = "sparse_ext.masks.granularity"

#: every granularity by an example of how it is written
GRANULARITIES: Registry[Form] = Registry(
    "granularity",
    {
        "element": Form(r"element", f"{_BUILDERS}:build_element"),
        "2:4": Form(
            r"(?:nm\()?\s*(?P<n>\d+)\s*[:,]\s*(?P<m>\d+)\s*\)?",
            f"{_BUILDERS}:build_nm",
            some_survive=True,
        ),
        "block8": Form(
            r"block\(?(?P<size>\d*)\)?(?P<merged>-merged)?(?P<padded>-padded)?",
            f"{_BUILDERS}:build_block",
            channels=True,
        ),
        "filter": Form(r"filter", f"{_BUILDERS}:build_filter", channels=True),
    },
)


def register_granularity(
    name: str,
    build: Callable[[Spelling], Any] | str,
    pattern: str | None = None,
    *,
    some_survive: bool = False,
    channels: bool = False,
) -> None:
    """Make a granularity known, so that `sparse.granularity=NAME` prunes in its units.

    Args:
        name: what users write, or an example of it.
        build: see `Form.build`; the text's parts are in `spelling.groups`.
        pattern: regular expression of the whole text; by default the name.
        some_survive: a pruned unit keeps some of its weights.
        channels: a channel can lose all its weights.

    Raises:
        ConfigError: there is another granularity of that name.
    """
    form = Form(pattern or re.escape(name), build, some_survive, channels)
    GRANULARITIES.register(name, form)


def read(text: Any) -> Spelling:
    """The granularity that a text such as `2:4` or `block8` names, by its parts.

    Args:
        text: `element`, `2:4` or `nm(2,4)` (any N:M), `block8` or `block` (any size; with
            `-merged` all kernel positions in one group, with `-padded` any channel count),
            `filter`, or a registered name.

    Raises:
        ConfigError: for anything else, or numbers that make no sense (4:2, block1).
    """
    for name, form in GRANULARITIES.items():
        found = re.fullmatch(form.pattern, spoken(text))
        if found is None:
            continue
        parts = found.groupdict()
        if name == "2:4":
            return check_nm(Spelling("nm", n=int(parts["n"]), m=int(parts["m"]), form=form))
        if name == "block8":
            size, merged, padded = int(parts["size"] or 8), *map(parts.get, ("merged", "padded"))
            block = Spelling("block", size=size, merged=bool(merged), padded=bool(padded))
            return check_block(block._replace(form=form))
        return Spelling(name, form=form, groups=parts)
    raise ConfigError(f"granularity={text!r} is unknown. {did_you_mean(text, GRANULARITIES)}")


def check_nm(spelling: Spelling) -> Spelling:
    """`spelling`, or ConfigError unless 0 < N < M."""
    if not 0 < spelling.n < spelling.m:
        raise ConfigError(
            f"granularity={spelling.n}:{spelling.m} needs 0 < N < M: N of M weights stay."
        )
    return spelling


def check_block(spelling: Spelling) -> Spelling:
    """`spelling`, or ConfigError for a block of single weights."""
    if spelling.size < 2:
        raise ConfigError(
            f"granularity=block{spelling.size}: a block is at least 2 wide; use `element` for "
            f"single weights."
        )
    return spelling


def spoken(text: Any) -> str:
    """`text` as a string; YAML 1.1 reads an unquoted 2:4 as 2 minutes and 4 seconds, 124."""
    if isinstance(text, int) and not isinstance(text, bool) and text >= 60:
        text = f"{text // 60}:{text % 60}"
    return str(text).strip()
