# SPDX-License-Identifier: MIT
"""Errors that a user meets: what is wrong, where they typed it, and what to do about it.

The programs print a `SoloError` as one short message and exit with code 2; any other exception is
a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SoloError(Exception):
    """Root of every error that names a mistake in the input."""


class ConfigError(SoloError, AssertionError, ValueError):
    """A key or a value of the configuration is wrong.

    Also an AssertionError and a ValueError, because code written for solo-learn catches those.
    """


class DataError(SoloError, RuntimeError):
    """A dataset folder or file is missing, empty or unreadable."""


class CheckpointError(SoloError, RuntimeError):
    """A checkpoint is missing, truncated, or does not fit the model it is loaded into."""


class OutputError(SoloError, OSError):
    """A file cannot be written: the disk is full, read-only or gone, or a folder has its name."""


class BusyError(SoloError, RuntimeError):
    """Another program is at work in a folder that belongs to one at a time."""


class NonFiniteError(SoloError, RuntimeError):
    """The loss or the weights became NaN or infinite."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A sentence with the nearest valid names, or with all of them when none is near.

    Args:
        word: what the user typed.
        options: the valid names.

    Returns:
        `Did you mean 'x'?`, or `Valid names: a, b, c.`, or an empty string without options.
    """
    options = sorted({str(option) for option in options})
    near = get_close_matches(str(word), options, n=2, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(f"'{name}'" for name in near) + "?"
    return f"Valid names: {', '.join(options)}." if options else ""
