# SPDX-License-Identifier: MIT
"""Where the time of a profiled run's steps went (`performance.profile`)."""

from __future__ import annotations

import json

from solo.errors import DataError
from sparse_ext.report.page import Page
from sparse_ext.report.runlog import RunLog


def step_times(page: Page, log: RunLog) -> None:
    """Add the parts of a training step, if the run was profiled.

    Raises:
        DataError: `profile.json` is damaged.
    """
    from solo.monitoring.profiling import FILE

    path = log.folder / FILE
    if not path.is_file():
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        steps, images = int(stored["steps"]), int(stored["images_per_step"])
        seconds = {str(part): float(s) for part, s in stored["seconds"].items()}
        total = sum(seconds.values())
        rows = [
            (part, f"{1000 * s / steps:,.3f}", f"{s / total:.1%}") for part, s in seconds.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise DataError(f"'{path}' is damaged ({error!r}): delete it.") from None
    if rows:
        rows.append(("the step", f"{1000 * total / steps:,.3f}", ""))
        text = (
            f"Measured over {steps} steps of {images} images on the machine that trained: "
            f"{steps * images / total:,.0f} images/s. A profiled run waits for the device at "
            "every change of part, so it is slower than others. A run that was resumed "
            "shows its last part."
        )
        page.table("Time of a step", ("part", "ms per step", "share"), rows, text)
