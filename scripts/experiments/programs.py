# SPDX-License-Identifier: MIT
"""The programs of this repository as jobs: what to run them with, their progress, their files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from solo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "solo" / "recipes"
SLOTS = 2  # programs at a time: one thread each is faster than two threads for one after the other


def require_checkout() -> None:
    """Raise ConfigError unless this is a checkout of the repository, with its programs."""
    if not (ROOT / "main_pretrain.py").is_file():
        raise ConfigError(f"This needs a checkout of the repository; {ROOT} is none.")


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores() -> tuple[int, dict[str, str]]:
    """How many small programs to run at a time on this machine, and their environment."""
    slots = min(SLOTS, cores())
    threads = str(max(1, min(4, cores() // slots)))
    return slots, {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def newest(folder: Path, pattern: str) -> Path:
    """The newest file in `folder` that fits `pattern`.

    Raises:
        DataError: there is none.
    """
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        raise DataError(f"{folder}: nothing there fits {pattern}. Start again with --fresh.")
    return found[-1]


def fingerprint(command: Sequence[object], folders: Sequence[str] = ()) -> str:
    """Of a command and of the code and recipes in `folders`: a change makes a job run again."""
    digest = hashlib.sha256(repr([str(part) for part in command]).encode())
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yaml") and os.access(path, os.R_OK):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def max_epochs(recipe: Path, overrides: Sequence[str] = ()) -> int:
    """Epochs of a run: the last override, else the recipe, else the recipe that it builds on."""
    own = recipe.read_text(encoding="utf-8")
    bases = [RECIPES / f"{name}.yaml" for name in re.findall(r"^  - /?(base/\w+)$", own, re.M)]
    found = re.findall(r"^max_epochs[:=] *(\d+)", "\n".join((own, *overrides)), re.MULTILINE)
    return int(found[-1]) if found else max_epochs(bases[0])


def epochs(total: int) -> Callable[[str], float | None]:
    """Reads bars, `Epoch 3 of 17:  40%`, and lines of finished epochs, `epoch 3 of 17:`.

    Also Lightning's own bar, `Epoch 2:  40%`, which counts from 0.
    """

    def progress(line: str) -> float | None:
        if found := re.search(r"epoch +(\d+) of \d+:", line):
            return int(found[1]) / total
        if found := re.search(r"Epoch (\d+)( of \d+)?: +(\d+)%", line):
            return (int(found[1]) - bool(found[2]) + int(found[3]) / 100) / total
        return None

    return progress


def precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """bf16 where the processor computes in it, which is faster there and slower anywhere else."""
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    native = re.search(r"^flags.*\b(avx512_bf16|amx_bf16)\b", text, re.MULTILINE)
    return ("precision=bf16-mixed",) if native else ()


def compose(recipe: str, overrides: Sequence[str]) -> DictConfig:
    """What the programs compose from the YAML file `recipe` (a path in the repository)."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    from sparse_ext.extension import register

    register()
    path = ROOT / recipe
    with initialize_config_dir(str(path.parent), version_base="1.2"):
        cfg = hydra_compose(path.name, overrides=list(overrides))
    OmegaConf.set_struct(cfg, False)
    return cfg
