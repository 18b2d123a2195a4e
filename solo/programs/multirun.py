# SPDX-License-Identifier: MIT
"""Many runs by one command, `--multirun key=a,b`: their names, what fails, the page at the end.

Free of torch: it stands between Hydra and the programs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo import extensions
from solo.programs.app import exit_code, run_program

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class Sweep:
    """What the jobs of this process have done.

    Attributes:
        jobs: names of those that were begun.
        failed: of those that ended with an error.
        folders: of the runs that are finished.
    """

    jobs: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


SWEEP = Sweep()


def run_job(cfg: DictConfig, task: Callable[[], Any]) -> None:
    """Run `task()` on the configuration that Hydra has composed; one of many has a name of its own.

    A job of many that fails is reported, and the next one begins; a single one ends the process.

    Args:
        cfg: whose `name` says in a job of many what it varies: `byol-lr=0.1`.
        task: the program.
    """
    varied = _varied()
    if varied is None:
        return run_program(task)
    from omegaconf import open_dict

    what = job_name(*varied)
    with open_dict(cfg):
        cfg.name = f"{cfg.name}-{what}" if what else cfg.name
    SWEEP.jobs.append(cfg.name)
    print(f"\nJob {len(SWEEP.jobs)}: {cfg.name}", flush=True)
    if exit_code(task):
        SWEEP.failed.append(cfg.name)


def job_name(overrides: Sequence[str], swept: Sequence[str]) -> str:
    """What a job varies, as part of a file's name: `lr=0.1,seed=3`.

    Args:
        overrides: of this job, `key=value`.
        swept: keys with several values on the command line.
    """
    parts = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+") in swept:
            short = key.lstrip("+").rpartition(".")[2]
            parts.append(f"{short}={re.sub(r'[^A-Za-z0-9.+_-]+', '-', value).strip('-')}")
    return ",".join(parts)


def finished(folder: Path) -> None:
    """Remember the folder of a finished run."""
    if folder not in SWEEP.folders:
        SWEEP.folders.append(folder)


def close() -> int:
    """Compare what the jobs have found, on a page where an extension writes one.

    Returns:
        the exit code: 0, or 2 where a job has failed.
    """
    if not SWEEP.jobs:
        return 0
    done = len(SWEEP.jobs) - len(SWEEP.failed)
    print(f"\n{done} of {len(SWEEP.jobs)} jobs are done.", flush=True)
    for name in SWEEP.failed:
        print(f"  failed: {name}", flush=True)
    if len(SWEEP.folders) > 1:
        for extension in extensions.registered():
            for what, path in extension.compare_runs(SWEEP.folders).items():
                print(f"  {what}: {path}", flush=True)
    return 2 if SWEEP.failed else 0


def _varied() -> tuple[list[str], list[str]] | None:
    """This job's overrides, and which keys the command line gives several values; None for one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    settings = HydraConfig.get()
    params = (settings.sweeper.get("params") or {}) if settings.get("sweeper") else {}
    return list(settings.overrides.task), [*swept_keys(sys.argv[1:]), *params]


def swept_keys(argv: Sequence[str]) -> list[str]:
    """Keys that get several values on the command line: `lr=0.1,0.2`, `seed=range(3)`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    texts = [arg for arg in argv if "=" in arg and not arg.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(texts)
    return [o.get_key_element().lstrip("+") for o in parsed if o.is_sweep_override()]
