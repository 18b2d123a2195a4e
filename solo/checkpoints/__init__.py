# SPDX-License-Identifier: MIT
"""Runs and weight files: opened, checked, rebuilt, exported.

`load_run` and `load_pretrained` open runs; they load on first use, since they need torch.
"""

from typing import Any

__all__ = ["load_pretrained", "load_run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from solo.checkpoints import runs

        return getattr(runs, name)
    raise AttributeError(f"module 'solo.checkpoints' has no attribute '{name}'")
