# SPDX-License-Identifier: MIT
"""Programs as jobs: some at a time, with one progress display, never twice, gone when we are.

A job that has succeeded leaves a record with a fingerprint of its command and configuration; a
later start finds it and does not run that job again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from solo.errors import SoloError
from solo.files.whole import write_json


class JobError(SoloError, RuntimeError):
    """A job failed; the message ends with what it printed last."""


@dataclass
class Job:
    """One program.

    Attributes:
        name: of its log and record; unique.
        title: for the display.
        command: program and arguments.
        fingerprint: equal only for runs with equal results.
        after: names of jobs that must have succeeded before.
        progress: from a line of its output to the finished share in [0, 1], or None.
        fraction: finished share.
        seconds: wall time it took, when it is done.
        reused: whether it was done by an earlier start.
        failure: how it failed and what it printed last.
    """

    name: str
    title: str
    command: Callable[[], Sequence[object]]
    fingerprint: str
    after: tuple[str, ...] = ()
    progress: Callable[[str], float | None] = lambda line: None
    fraction: float = 0.0
    seconds: float | None = None
    reused: bool = False
    failure: str | None = None
    started: float = field(default=0.0, repr=False)
    process: subprocess.Popen | None = field(default=None, repr=False)
    reader: threading.Thread | None = field(default=None, repr=False)

    @property
    def done(self) -> bool:
        """Whether it has succeeded, now or earlier."""
        return self.seconds is not None


class Runner:
    """Runs jobs, at most `slots` at a time, in the order given where nothing else decides.

    Args:
        folder: logs and records go to `logs/` and `done/` in it.
        slots: jobs at a time.
        env: environment of the jobs.
        show: called with all jobs a few times per second.
    """

    def __init__(
        self, folder: Path, slots: int, env: Mapping[str, str], show: Callable[[list[Job]], None]
    ) -> None:
        self.logs, self.records = folder / "logs", folder / "done"
        self.slots, self.env, self.show = slots, {**os.environ, **env}, show

    def run(self, jobs: list[Job], keep_going: bool = False) -> None:
        """Run them all; on an error, or when interrupted, no job is left behind.

        Args:
            jobs: what to run.
            keep_going: after a failure, still run whatever does not need the failed job.

        Raises:
            JobError: one failed, or several.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        self.records.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            self._recall(job)
        try:
            while self._advance(jobs):
                self.show(jobs)
                if not keep_going and any(job.failure for job in jobs):
                    break
                time.sleep(0.1)
        finally:
            stop([job for job in jobs if job.process is not None])
        self.show(jobs)
        if failures := [job.failure for job in jobs if job.failure]:
            raise JobError("\n\n".join(failures))

    def log(self, job: Job) -> Path:
        """File with everything that the job printed."""
        return self.logs / f"{job.name}.log"

    def _advance(self, jobs: list[Job]) -> bool:
        """Note what has ended and start what can be started; whether anything runs."""
        for job in jobs:
            if job.process is not None and job.process.poll() is not None:
                self._finish(job)
        running = sum(job.process is not None for job in jobs)
        finished = {job.name for job in jobs if job.done}
        waiting = [j for j in jobs if not (j.done or j.failure or j.process)]
        ready = [job for job in waiting if finished >= set(job.after)][: self.slots - running]
        for job in ready:
            self._start(job)
        return bool(running or ready)

    def _start(self, job: Job) -> None:
        self._record(job).unlink(missing_ok=True)
        job.started = time.monotonic()
        job.process = subprocess.Popen(
            [str(part) for part in job.command()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self.env,
        )
        job.reader = threading.Thread(target=self._follow, args=(job,), daemon=True)
        job.reader.start()

    def _follow(self, job: Job) -> None:
        """Copy the job's output to its log and read its progress from it."""
        stream, rest = job.process.stdout, ""  # type: ignore[union-attr]
        with open(self.log(job), "w", encoding="utf-8") as log:
            while chunk := os.read(stream.fileno(), 65536):  # type: ignore[union-attr]
                *lines, rest = re.split(r"[\r\n]", rest + chunk.decode("utf-8", "replace"))
                for line in filter(str.strip, lines):
                    log.write(line + "\n")
                    log.flush()
                    job.fraction = max(job.fraction, min(1.0, job.progress(line) or 0.0))
            log.write(rest)

    def _finish(self, job: Job) -> None:
        process, job.process = job.process, None
        job.reader.join(timeout=10)  # type: ignore[union-attr]
        if process.returncode != 0:  # type: ignore[union-attr]
            last = "\n".join(_last_words(self.log(job)))
            job.failure = (
                f"{job.title} failed (exit code {process.returncode}).\n"  # type: ignore[union-attr]
                f"Its last words, from {self.log(job)}:\n{last}"
            )
            return
        job.fraction, job.seconds = 1.0, time.monotonic() - job.started
        record = {"fingerprint": job.fingerprint, "seconds": round(job.seconds, 2)}
        write_json(self._record(job), record)

    def _recall(self, job: Job) -> None:
        try:
            record = json.loads(self._record(job).read_text())
            if record["fingerprint"] == job.fingerprint and self.log(job).is_file():
                job.seconds, job.fraction, job.reused = record["seconds"], 1.0, True
        except (OSError, ValueError, KeyError):
            pass

    def _record(self, job: Job) -> Path:
        return self.records / f"{job.name}.json"


def stop(jobs: Sequence[Job], patience: float = 5.0) -> None:
    """End what still runs: ask, wait `patience` seconds, then insist."""
    processes = [job.process for job in jobs if job.process is not None]
    for process in processes:
        process.terminate()
    end = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(path: Path, n: int = 12) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # an error may stand behind a progress bar that was being drawn
    errors = ["error: " + line.split("error: ", 1)[1] for line in lines if "error: " in line]
    return errors[-1:] or [line for line in lines if "it/s" not in line][-n:]
