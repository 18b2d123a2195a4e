# SPDX-License-Identifier: MIT
"""What the quickstart runs: the programs and recipes that anyone would use, as jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.experiments import programs
from scripts.experiments.jobs import Job
from scripts.experiments.programs import ROOT

PRETRAIN, LINEAR = "scripts/pretrain/digits/lejepa.yaml", "scripts/linear/digits/linear.yaml"
KNN = ("--k", "20", "--distance_function", "cosine", "--temperature", "0.07")
ENCODERS = {"dense": "dense", "sparse": "sparse", "random": "random encoder"}
PRETRAINED = ("dense", "sparse")
# SyncCP's defaults are for hundreds of epochs. A run of minutes has few updates: the ramp starts
# when the encoder has learnt something, and each update leaves time to recover from it. Layers of
# this width are as fast densely, and then the figures are those of any machine.
SPARSE = (
    "+sparse=synccp",
    "sparse.kernel=dense",
    "sparse.update_period=44",
    "sparse.drop_start=0.1",
    "sparse.regrow_after_ramp=False",
    "sparse.ramp_end=0.75",
)


@dataclass(frozen=True)
class Settings:
    """How the quickstart runs.

    Attributes:
        folder: where everything goes.
        pretrain: further `key=value` for both pretraining runs.
        linear: further `key=value` for every linear evaluation.
    """

    folder: Path
    pretrain: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()


def jobs(settings: Settings) -> list[Job]:
    """Everything, longest first, so that two cores are busy to the end.

    Raises:
        ConfigError: this is not a checkout of the repository.
    """
    programs.require_checkout()
    plan = [_pretrain(settings, name) for name in PRETRAINED]
    plan.append(_baselines(settings))
    plan += [_linear(settings, name) for name in ENCODERS]
    return plan + [_knn(settings, name) for name in ENCODERS]


def checkpoint(settings: Settings, name: str) -> Path:
    """The newest checkpoint of an encoder (`dense`, `sparse` or `random`).

    Raises:
        DataError: there is none.
    """
    return programs.newest(settings.folder / name, "*/*/*.ckpt")


def linear_run(settings: Settings, name: str) -> Path:
    """The folder of the newest linear evaluation on an encoder, or on `raw` pixels.

    Raises:
        DataError: there is none.
    """
    return programs.newest(settings.folder / f"linear-{name}", "*/*/metrics.csv").parent


def _pretrain(settings: Settings, name: str) -> Job:
    more = SPARSE if name == "sparse" else ()
    command = (
        *(sys.executable, ROOT / "main_pretrain.py"),
        *_config(PRETRAIN),
        *more,
        f"checkpoint.dir='{settings.folder / name}'",
        *settings.pretrain,
    )
    return Job(
        name=f"pretrain-{name}",
        title=f"{ENCODERS[name]}: self-supervised pretraining",
        command=lambda: command,
        fingerprint=_fingerprint(command),
        progress=_progress(PRETRAIN, settings.pretrain),
    )


def _baselines(settings: Settings) -> Job:
    command = (
        *(sys.executable, "-m", "scripts.experiments.quickstart.baselines", settings.folder),
        *("--pretrain", *settings.pretrain, "--linear", *settings.linear),
    )
    return Job(
        name="baselines",
        title="raw pixels: linear and kNN",
        command=lambda: command,
        fingerprint=_fingerprint(command),
        progress=_progress(LINEAR, settings.linear),
    )


def _linear(settings: Settings, name: str) -> Job:
    base = (
        *(sys.executable, ROOT / "main_linear.py"),
        *_config(LINEAR),
        f"checkpoint.dir='{settings.folder / f'linear-{name}'}'",
        *settings.linear,
    )
    return Job(
        name=f"linear-{name}",
        title=f"{ENCODERS[name]}: linear evaluation",
        command=lambda: (
            *base,
            f"pretrained_feature_extractor='{checkpoint(settings, name)}'",
        ),
        fingerprint=_fingerprint((*base, *settings.pretrain)),
        after=(_maker(name),),
        progress=_progress(LINEAR, settings.linear),
    )


def _knn(settings: Settings, name: str) -> Job:
    base = (
        *(sys.executable, ROOT / "main_knn.py", "--dataset", "digits", *KNN),
        *("--batch_size", "256", "--num_workers", "0"),
    )
    return Job(
        name=f"knn-{name}",
        title=f"{ENCODERS[name]}: kNN evaluation",
        command=lambda: (
            *base,
            *("--pretrained_checkpoint_dir", checkpoint(settings, name).parent),
        ),
        fingerprint=_fingerprint((*base, settings.folder, *settings.pretrain)),
        after=(_maker(name),),
    )


def _maker(name: str) -> str:
    return f"pretrain-{name}" if name in PRETRAINED else "baselines"


def _fingerprint(command: tuple) -> str:
    """Of the command, the recipes and the code: a change of any makes a job run again."""
    recipes = (str(Path(PRETRAIN).parent), str(Path(LINEAR).parent))
    return programs.fingerprint(command, (*recipes, "solo", "sparse_ext"))


def _config(recipe: str) -> tuple[str, ...]:
    path = ROOT / recipe
    return "--config-path", str(path.parent), "--config-name", path.name


def _progress(recipe: str, overrides: tuple[str, ...]) -> Callable[[str], float | None]:
    return programs.epochs(programs.max_epochs(ROOT / recipe, overrides))
