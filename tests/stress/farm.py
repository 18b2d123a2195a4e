# SPDX-License-Identifier: MIT
"""Runs the project's programs in forks of one process that has imported everything already.

A run of a few steps then takes about a second instead of ten, so that hundreds of them are tried.
Each has a session of its own: killing it takes its workers along.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

ROOT = Path(__file__).parents[2]
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Ended:
    """How a run ended: exit code (minus the signal's number if one ended it), and its words."""

    code: int
    text: str
    seconds: float

    @property
    def traceback(self) -> bool:
        """Whether it ended in one, or wrote one on the way."""
        return TRACEBACK in self.text


class Forked:
    """A fork of this process in place of the Python process that a command line asks for.

    Has what `scripts.experiments.jobs` uses of `subprocess.Popen`.
    """

    def __init__(self, command: list[str], env: dict[str, str], **_: object):
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
            self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            os.environ.update(env)
            at = 2 if command[1] == "-m" else 1
            _become(" ".join(command[1 : at + 1]), command[at + 1 :], writing)
        os.close(writing)
        self.stdout = os.fdopen(reading, "rb", buffering=0)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fork", timeout)
            time.sleep(0.01)
        return self.returncode

    def terminate(self) -> None:
        """Ask it to stop."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)


MODULES = (
    "matplotlib.pyplot",
    "scripts.experiments.jobs",
    "scripts.experiments.quickstart.baselines",
    "scripts.experiments.quickstart.summary",
    "solo.programs.knn",
    "sparse_ext.prune.program",
    "lightning.pytorch",
    "sklearn.datasets",
    "timm.data.mixup",
    "torchmetrics",
    "solo.methods",
    "solo.programs.linear",
    "solo.programs.pretrain",
    "solo.programs.training",
    "sparse_ext.export.slim",
    "sparse_ext.gating.callback",
    "sparse_ext.tickets.program",
    "sparse_ext.tickets.sweeps.sweep",
    "sparse_ext.training.callback",
)


def preload() -> None:
    """Import, and draw, in this process what its forks will need; starts no thread."""
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    from solo.methods import METHODS

    for name in METHODS:  # made when they are first asked for
        METHODS[name]
    from solo.data.datasets.digits import DigitsDataset

    for train in (True, False):  # what is drawn is kept in memory
        DigitsDataset(train)


class Program:
    """One run of a script in a fork.

    Args:
        script: path in the repository, or `-m module`.
        arguments: of its command line.
        folder: working folder.
        limits: called in the fork before the script.
        log: file for its words; by default one in the working folder.
    """

    def __init__(
        self,
        script: str,
        arguments: list[str],
        folder: Path,
        limits=None,
        log: Path | None = None,
    ):
        self.log = log or Path(folder) / f".log-{time.monotonic_ns()}"
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(script, arguments, folder, limits)

    def _be(self, script: str, arguments: list[str], folder: Path, limits) -> None:
        os.setsid()
        os.chdir(folder)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT, 0o644)
        if limits is not None:
            limits()
        _become(script, arguments, log)

    def wait(self, timeout: float = 120) -> Ended:
        """Wait for the end; a run that takes longer is killed and counts as code -999."""
        end = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return self._ended(os.waitstatus_to_exitcode(status))
            if time.monotonic() > end:
                self.kill()
                os.waitpid(self.pid, 0)
                return self._ended(-999)
            time.sleep(0.01)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal to the run; SIGKILL to its workers, too."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if signum == signal.SIGKILL else os.kill)(self.pid, signum)

    def text(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _ended(self, code: int) -> Ended:
        text = self.text()
        self.log.unlink(missing_ok=True)
        return Ended(code, text, time.monotonic() - self.began)


def _become(script: str, arguments: list[str], log: int) -> NoReturn:
    """Run a script in this process, which ends with it; its words go to the descriptor `log`."""
    code = 1
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.default_int_handler if name == 2 else signal.SIG_DFL)
        sys.modules["scripts.experiments.jobs"].subprocess = SimpleNamespace(
            **vars(subprocess) | {"Popen": Forked}
        )
        if script.startswith("-m "):
            sys.argv = [script[3:], *arguments]
            runpy.run_module(script[3:], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [str(ROOT / script), *arguments]
            runpy.run_path(str(ROOT / script), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(script: str, arguments: list[str], folder: Path, timeout: float = 120, **options) -> Ended:
    """Run to the end."""
    return Program(script, arguments, folder, **options).wait(timeout)
