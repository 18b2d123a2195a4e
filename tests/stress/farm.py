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
import sys
import time
from dataclasses import dataclass
from pathlib import Path

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


MODULES = (
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
    """Import in this process what its forks will need; starts no thread."""
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    from solo.methods import METHODS

    for name in METHODS:  # made when they are first asked for
        METHODS[name]


class Program:
    """One run of a script in a fork.

    Args:
        script: path in the repository, or `-m module`.
        arguments: of its command line.
        folder: working folder.
        limits: called in the fork before the script.
    """

    def __init__(self, script: str, arguments: list[str], folder: Path, limits=None):
        self.log = Path(folder) / f".log-{time.monotonic_ns()}"
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be(script, arguments, folder, limits)

    def _be(self, script: str, arguments: list[str], folder: Path, limits) -> None:
        code = 1
        try:
            os.setsid()
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            os.chdir(folder)
            for name in (signal.SIGINT, signal.SIGTERM):
                signal.signal(name, signal.default_int_handler if name == 2 else signal.SIG_DFL)
            if limits is not None:
                limits()
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


def run(script: str, arguments: list[str], folder: Path, timeout: float = 120, **options) -> Ended:
    """Run to the end."""
    return Program(script, arguments, folder, **options).wait(timeout)
