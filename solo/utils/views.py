# SPDX-License-Identifier: MIT
"""Which view is being encoded, and by which encoder.

Training steps announce it with `encoding`; patched layers (gates, dual batch norms, base paths)
read it with `current_view`. Nothing is ever inferred from train or eval mode.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple


class View(NamedTuple):
    """One pass through an encoder: which view, by which encoder.

    Attributes:
        index: position of the view in the batch, large crops first.
        encoder: `online` or `momentum`.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    encoder: Literal["online", "momentum"]


_current: ContextVar[View | None] = ContextVar("current_view", default=None)


@contextmanager
def encoding(index: int, encoder: Literal["online", "momentum"] = "online") -> Iterator[View]:
    """Announce that view `index` goes through `encoder` inside the `with` block."""
    view = View(index, encoder)
    token = _current.set(view)
    try:
        yield view
    finally:
        _current.reset(token)


def current_view() -> View | None:
    """The pass under way, or None outside of a training step (evaluation names its branch)."""
    return _current.get()
