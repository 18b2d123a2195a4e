# SPDX-License-Identifier: MIT
"""How granularities are written. Free of torch, so that a configuration is checked at once."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from solo.errors import ConfigError, did_you_mean

_PATTERNS = {
    "element": re.compile(r"element"),
    "2:4": re.compile(r"(?:nm\()?\s*(?P<n>\d+)\s*[:,]\s*(?P<m>\d+)\s*\)?"),
    "block8": re.compile(r"block\(?(?P<size>\d*)\)?(?P<merged>-merged)?(?P<padded>-padded)?"),
    "filter": re.compile(r"filter"),
}


class Spelling(NamedTuple):
    """A granularity by its parts.

    Attributes:
        kind: `element`, `nm`, `block` or `filter`.
        n: members that a pruned N:M group keeps.
        m: members of an N:M group.
        size: edge of a block.
        merged: one block takes all kernel positions.
        padded: blocks may hang over the edges of a weight.
    """

    kind: str
    n: int = 0
    m: int = 0
    size: int = 0
    merged: bool = False
    padded: bool = False


def read(text: Any) -> Spelling:
    """What `text` names.

    Args:
        text: `element`, `2:4` or `nm(2,4)` (any N:M), `block8` or `block` (any size; with
            `-merged` all kernel positions in one group, with `-padded` any channel count),
            `filter`.

    Raises:
        ConfigError: for anything else, or numbers that make no sense (4:2, block1).
    """
    found = {name: regex.fullmatch(spoken(text)) for name, regex in _PATTERNS.items()}
    if nm := found["2:4"]:
        return check_nm(Spelling("nm", n=int(nm["n"]), m=int(nm["m"])))
    if block := found["block8"]:
        size, merged, padded = int(block["size"] or 8), bool(block["merged"]), bool(block["padded"])
        return check_block(Spelling("block", size=size, merged=merged, padded=padded))
    kind = next((name for name in ("element", "filter") if found[name]), None)
    if kind is None:
        raise ConfigError(f"granularity={text!r} is unknown. {did_you_mean(text, _PATTERNS)}")
    return Spelling(kind)


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
