# SPDX-License-Identifier: MIT
"""How budgets of whole networks are written (`sparse.budget`). Importing this needs no torch."""

from __future__ import annotations

from typing import NamedTuple

from solo.errors import ConfigError, did_you_mean

#: what a budget counts -> the same in words
KINDS = {
    "params": "parameters",
    "macs": "multiply-accumulates per image",
    "latency": "seconds per image, measured where the run is",
}


class Budget(NamedTuple):
    """What may be left of a network.

    Attributes:
        kind: what is counted, one of `KINDS`.
        share: of the dense network's that is left, in (0, 1].
    """

    kind: str
    share: float


def read_budget(text: str) -> Budget:
    """A budget such as `macs:0.5`: half of the multiply-accumulates are left.

    >>> read_budget("params:0.25")
    Budget(kind='params', share=0.25)

    Raises:
        ConfigError: it is not written like that.
    """
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise ConfigError(
            f"sparse.budget={text}: {kind!r} is nothing that a network costs. "
            f"{did_you_mean(kind, KINDS)} Write KIND:SHARE, such as macs:0.5."
        )
    try:
        share = float(number)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(
            f"sparse.budget={text}: behind the colon stands the share of the {KINDS[kind]} that is "
            f"left, above 0 and at most 1, such as {kind}:0.5."
        )
    return Budget(kind, share)
