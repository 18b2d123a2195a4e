# SPDX-License-Identifier: MIT
"""The log of sparse training: what it decides and what a user should know, seen in every run.

Hydra's `job_logging: disabled`, which solo-learn's YAML files set, switches off every logger that
exists by then, raises the root logger to ERROR and takes its handlers away.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from solo.monitoring.console import say

log = logging.getLogger("sparse_ext")


class _Console(logging.Handler):
    """Writes to standard error where the root logger writes nowhere."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            say(self.format(record), error=True)


_console = _Console()
_console.setFormatter(logging.Formatter("[%(name)s] %(message)s"))


def listen() -> None:
    """Make sure that `log` is heard from INFO on; twice changes nothing."""
    log.disabled = False
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if _console not in log.handlers:
        log.addHandler(_console)


def in_words(sparsities: Sequence[float]) -> str:
    """Sparsities of the encoders, online first: `online 30.0%, momentum 0.0%`."""
    named = zip(("online", "momentum"), sparsities, strict=False)
    return ", ".join(f"{name} {100 * share:.1f}%" for name, share in named)


def steps(count: int) -> str:
    """What stands behind `every`: `step`, `8 steps`."""
    return "step" if count == 1 else f"{count:,} steps"
