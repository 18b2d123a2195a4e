# SPDX-License-Identifier: MIT
"""A self-contained HTML page about a run: what it did to losses, masks, and accuracy.

`python3 -m sparse_ext.report RUN_DIR` writes `RUN_DIR/report.html` from the `metrics.csv` and
`args.json` that every run of `main_pretrain.py` and `main_linear.py` leaves.
"""

from importlib import import_module

_LAZY = {
    "RunLog": "sparse_ext.report.runlog",
    "Page": "sparse_ext.report.page",
    "run_section": "sparse_ext.report.one_run",
    "write_report": "sparse_ext.report.one_run",
}
__all__ = [*_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'sparse_ext.report' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)
