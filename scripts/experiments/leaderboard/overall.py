# SPDX-License-Identifier: MIT
"""Progress of many cells: how many are done, and about how long the rest takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from scripts.experiments.jobs import Job
from scripts.experiments.progress import Display


class Overall:
    """Call it with the jobs as often as you like.

    Args:
        slots: jobs at a time.
        finished: called whenever a job has ended, and once at the start.
        stream: where to draw.
    """

    def __init__(
        self, slots: int, finished: Callable[[], object], stream: TextIO = sys.stdout
    ) -> None:
        self.slots, self.finished, self.stream = slots, finished, stream
        self.display = Display(stream)
        self._ended = -1

    def __call__(self, jobs: list[Job]) -> None:
        """Tell what is new; jobs of earlier starts are counted, not listed."""
        self.display([job for job in jobs if not job.reused])
        ended = sum(job.done or job.failure is not None for job in jobs)
        if ended != self._ended:
            self._ended = ended
            self.finished()
            self.stream.write(f"{summary(jobs, self.slots)}\n")
            self.stream.flush()


def summary(jobs: list[Job], slots: int) -> str:
    """`12 of 190 cells, 1 failed, about 3 h 10 min left`."""
    done = [job for job in jobs if job.done]
    failed = sum(job.failure is not None for job in jobs)
    parts = [f"{len(done)} of {len(jobs)} cells"]
    if failed:
        parts.append(f"{failed} failed")
    left = seconds_left(jobs, slots)
    if left is not None:
        minutes = round(left / 60)
        parts.append(f"about {minutes // 60} h {minutes % 60:02d} min left")
    return ", ".join(parts)


def seconds_left(jobs: list[Job], slots: int) -> float | None:
    """Mean wall time of a finished job times those to come, shared among the slots.

    None before the first has finished. What has run of a running job counts as done.
    """
    taken = [job.seconds for job in jobs if job.seconds is not None]
    if not taken:
        return None
    mean = sum(taken) / len(taken)
    waiting = [job for job in jobs if not job.done and job.failure is None]
    now = time.monotonic()
    ran = sum(min(mean, now - job.started) for job in waiting if job.process is not None)
    return max(0.0, mean * len(waiting) - ran) / slots
