# SPDX-License-Identifier: MIT
"""Progress of several jobs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from scripts.experiments.jobs import Job

WIDTH = 28  # of a bar, characters
PAUSE = 20.0  # seconds between two lines of a job where there is no terminal


class Display:
    """Call it with the jobs as often as you like.

    Args:
        stream: where to draw; bars only if it is a terminal.
    """

    def __init__(self, stream: TextIO = sys.stdout) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self.began = time.monotonic()
        self._told: set[str] = set()
        self._next: dict[str, float] = {}
        self._drawn = 0
        self._redraw = 0.0

    def __call__(self, jobs: list[Job]) -> None:
        """Tell what is new."""
        ended = [job for job in jobs if job.done or job.failure]
        news = [job for job in ended if job.name not in self._told]
        self._told |= {job.name for job in news}
        running = [job for job in jobs if job.process is not None]
        if self.live:
            self._bars(news, running)
        else:
            self._lines(news, running)

    def _bars(self, news: list[Job], running: list[Job]) -> None:
        now = time.monotonic()
        if not news and running and now < self._redraw:
            return
        self._redraw = now + 0.25
        columns = shutil.get_terminal_size().columns - 1
        text = [_done(job) for job in news] + [_bar(job, now) for job in running]
        back = f"\x1b[{self._drawn}A" if self._drawn else ""
        self.stream.write(f"\r{back}\x1b[J" + "".join(line[:columns] + "\n" for line in text))
        self.stream.flush()
        self._drawn = len(running)

    def _lines(self, news: list[Job], running: list[Job]) -> None:
        now = time.monotonic()
        for job in news:
            print(_done(job), file=self.stream, flush=True)
        for job in running:
            if now >= self._next.setdefault(job.name, job.started + PAUSE):
                self._next[job.name] = now + PAUSE
                print(_bar(job, now), file=self.stream, flush=True)


def _bar(job: Job, now: float) -> str:
    full = round(WIDTH * job.fraction)
    passed = now - job.started
    left = ""
    if 0.05 < job.fraction < 1:
        left = f", about {_clock(passed * (1 - job.fraction) / job.fraction)} left"
    return (
        f"  {job.title:34} {'█' * full}{'░' * (WIDTH - full)} {100 * job.fraction:3.0f}%  "
        f"{_clock(passed)}{left}"
    )


def _done(job: Job) -> str:
    if job.failure:
        return f"✗ {job.title:34} failed"
    how = "done earlier, not run again" if job.reused else f"{job.seconds:.0f} s"
    return f"✓ {job.title:34} {how}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
