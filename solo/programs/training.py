# SPDX-License-Identifier: MIT
"""What pretraining and linear evaluation share: hardware, resuming, callbacks, the Trainer."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader

from solo.args.common import count_devices, processes
from solo.checkpoints.writer import CheckpointWriter
from solo.data.datasets.holdout import Holdout
from solo.data.datasets.images import ReadError
from solo.data.datasets.splits import Split
from solo.errors import ConfigError
from solo.methods.heads import BATCH_NORMS
from solo.monitoring.guards import EpochSeeder, NonFiniteGuard, ResumedRun
from solo.monitoring.interruptions import Interruptions, WithinEpoch
from solo.monitoring.loggers import CSVMetrics, csv_of
from solo.monitoring.profiling import AUGMENTATION, StepProfiler
from solo.monitoring.progress import ThroughputBar
from solo.monitoring.quiet import quiet
from solo.monitoring.replay import StepKeeper
from solo.programs.epoch_lines import EpochLines
from solo.programs.resuming import Resume, Run, announce, explained, find_resume, run_folder
from solo.utils.best_checkpoint import BestCheckpoint
from solo.utils.misc import omegaconf_select

Data = LightningDataModule | tuple[DataLoader, DataLoader | None]


def fit(
    cfg: DictConfig,
    model: LightningModule,
    data: Data,
    logdir: Path,
    callbacks: list[Callback] = (),
    resume: Resume | None = None,
    watching: Sequence[Callback] = (),
) -> Trainer:
    """Train `model` on `data` as the configuration says, resuming where it can.

    Args:
        cfg: parsed configuration; its keys that are arguments of Trainer are passed on.
        model: the method or the linear classifier.
        data: (training loader, validation loader or None), or a data module.
        logdir: `<checkpoint.dir>/<method>`; checkpoints and metrics go to `<logdir>/<version>/`.
        callbacks: further callbacks.
        resume: what `find_resume` has found, where the caller asked it already.
        watching: callbacks that log or stop at the end of an epoch, before its checkpoint is taken.

    Returns:
        The trainer, after the run.
    """
    quiet()
    _require_statistics(cfg, model)
    resume = find_resume(cfg, logdir) if resume is None else resume
    with run_folder(cfg, logdir, resume) as run:
        announce(run.resume)
        return _fit(cfg, model, data, logdir, callbacks, run, watching)


def _fit(
    cfg: DictConfig,
    model: LightningModule,
    data: Data,
    logdir: Path,
    callbacks: list[Callback],
    run: Run,
    watching: Sequence[Callback],
) -> Trainer:
    monitors = []
    if cfg.wandb.enabled:
        run.loggers[0].watch(model, log="gradients", log_freq=100)
    if cfg.wandb.enabled or cfg.tensorboard.enabled:
        monitors.append(LearningRateMonitor(logging_interval="step"))
    bar = [ThroughputBar()] if cfg.get("enable_progress_bar", True) else []
    own = _own_callbacks(cfg, logdir, run, watching)
    trainer = _trainer(trainer_arguments(cfg), run.loggers, [*own, *callbacks, *monitors, *bar])
    loaders = {"datamodule": data} if isinstance(data, LightningDataModule) else {}
    path = None if run.resume.path is None else str(run.resume.path)
    with _profiled(cfg, trainer, model, data, logdir), explained(run, trainer), _way_out(cfg):
        given = () if loaders else data
        trainer.fit(model, *given, **loaders, ckpt_path=path, weights_only=True)
    return trainer


def _require_statistics(cfg: DictConfig, model: LightningModule) -> None:
    """Batch norm has nothing to compare a single image with.

    Raises:
        ConfigError: it would have to, in the networks that are trained.
    """
    trained = model.modules() if cfg.get("finetune", True) else ()
    together = processes(cfg) if cfg.get("sync_batchnorm") and not _on_cpu(cfg) else 1
    if cfg.optimizer.batch_size * together > 1:
        return
    if norm := next((m for m in trained if isinstance(m, BATCH_NORMS)), None):
        raise ConfigError(
            f"optimizer.batch_size=1: batch norm ({type(norm).__name__}) takes its statistics over "
            "a batch, and one image has none to compare it with: take at least 2"
        )


@contextmanager
def _way_out(cfg: DictConfig) -> Iterator[None]:
    """Name the key that leaves broken files out, or that asks for validation too late."""
    try:
        yield
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise ConfigError(
            f"val_check_interval={cfg.val_check_interval} is more than an epoch has batches: "
            f"{' '.join(str(error).split())} As a number between 0 and 1 it is a part of an epoch; "
            "check_val_every_n_epoch validates every few epochs"
        ) from error
    except ReadError as error:
        if omegaconf_select(cfg, "data.skip_unreadable", False):
            raise
        hint = "With data.skip_unreadable=True broken files are counted and left out."
        raise ReadError(f"{error} {hint}") from error


@contextmanager
def _profiled(
    cfg: DictConfig, trainer: Trainer, model: LightningModule, data: Data, logdir: Path
) -> Iterator[None]:
    """Inside, `performance.profile` measures; the table comes at the end."""
    if not omegaconf_select(cfg, "performance.profile", False):
        yield
        return
    if cfg.get("profiler"):
        raise ConfigError("performance.profile and profiler exclude each other: leave one out")
    masks = [callback.state_key for callback in model.configure_callbacks()]
    trainer.profiler = profiler = StepProfiler(masks)
    views = getattr(getattr(data, "dataset", None), "views", None)
    if views is not None:  # made of whole batches in this process
        profiler.watch(views, AUGMENTATION)
    with profiler.receiving():
        yield
    if trainer.is_global_zero:
        images = cfg.optimizer.batch_size * trainer.world_size
        print(profiler.table(images))
        profiler.write(logdir / str(trainer.logger.version), images)


def _trainer(arguments: dict[str, Any], loggers: list, callbacks: list[Callback]) -> Trainer:
    if arguments["strategy"] == "auto" or isinstance(arguments["strategy"], DDPStrategy):
        given = arguments.get("plugins") or []
        given = list(given) if isinstance(given, (list, tuple)) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in given):
            arguments = {**arguments, "plugins": [*given, CheckpointWriter()]}
    try:
        return Trainer(**arguments, logger=loggers, callbacks=callbacks, enable_checkpointing=False)
    except (TypeError, ValueError, MisconfigurationException) as error:
        if isinstance(error, MisconfigurationException) and "invalid value" not in str(error):
            raise  # of the machine, which `explain` puts into words
        reason = " ".join(str(error).split())
        raise ConfigError(f"Lightning's Trainer refuses its arguments: {reason}") from error


def _own_callbacks(
    cfg: DictConfig, logdir: Path, run: Run, watching: Sequence[Callback]
) -> list[Callback]:
    """Guard before checkpointer, so that nothing that is not finite is ever saved."""
    csv = csv_of(run.loggers)
    saver = run.saver
    keeper = StepKeeper(cfg, logdir, omegaconf_select(cfg, "performance.replay"))
    # in this order: the step draws after the seed
    seeding = [ResumedRun(), EpochSeeder(cfg.seed), keeper]
    guards = [_ContinueMetrics(csv, run), WithinEpoch(), NonFiniteGuard(saver, keeper), *seeding]
    savers: list[Callback] = [] if saver is None else [saver]
    if saver is not None and cfg.checkpoint.get("monitor"):
        savers.append(BestCheckpoint(saver, cfg.checkpoint.monitor, cfg.checkpoint.mode or "max"))
    return [*guards, EpochLines(cfg, csv), *watching, *savers, Interruptions(saver)]


class _ContinueMetrics(Callback):
    """Takes over the rows of a resumed run that its checkpoint covers."""

    def __init__(self, csv: CSVMetrics, run: Run):
        super().__init__()
        self.csv, self.run = csv, run

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.begun = True
        self.csv.keep_before(trainer.global_step)

    def on_train_batch_end(self, *_: Any) -> None:
        self.run.stepped = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.csv.save()


def trainer_arguments(cfg: DictConfig) -> dict[str, Any]:
    """The keys of `cfg` that are arguments of Lightning's Trainer, fitted to the machine.

    A list of devices works on the CPU as their number; synchronised batch normalisation, which
    needs a GPU, and `ddp` for a single process are left out.
    """
    names = set(inspect.signature(Trainer.__init__).parameters)
    names -= {"self", "logger", "callbacks", "enable_checkpointing"}
    kwargs = {name: _plain(cfg[name]) for name in names if name in cfg}
    if kwargs.get("enable_model_summary") is None:  # the first lines of a run say its size
        kwargs["enable_model_summary"] = False
    if str(kwargs.get("precision")) in ("bf16-true", "16-true"):
        warnings.warn(
            f"precision={kwargs['precision']} keeps batch norm's running statistics and momentum "
            "networks in half precision, where small updates round to nothing: at a momentum of "
            "0.996 a third of the distance is never made. Use precision=bf16-mixed."
        )
    count = count_devices(cfg)
    if _on_cpu(cfg):
        kwargs["devices"] = count
        if kwargs.pop("sync_batchnorm", False) and count > 1:
            warnings.warn("sync_batchnorm needs a GPU; on the CPU each process has its own")
    if count * int(cfg.get("num_nodes") or 1) == 1 and kwargs.get("strategy") in (None, "ddp"):
        kwargs["strategy"] = "auto"
    elif kwargs.get("strategy") == "ddp":
        kwargs["strategy"] = DDPStrategy(find_unused_parameters=False)
    elif kwargs.get("strategy") is None:
        kwargs["strategy"] = "auto"
    if SLURMEnvironment.detect() and "TORCHELASTIC_RUN_ID" not in os.environ:
        # Lightning's own requeueing would resume hpc_ckpt_* of whatever run shares the folder.
        kwargs.setdefault("plugins", [SLURMEnvironment(auto_requeue=False)])
    return kwargs


def _on_cpu(cfg: DictConfig) -> bool:
    accelerator = cfg.get("accelerator", "auto")
    return accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


class LogFigures(Callback):
    """Logs figures measured before training, as `encoder/<name>`, in the first row of metrics."""

    def __init__(self, figures: Mapping[str, float]):
        super().__init__()
        self.figures = {f"encoder/{name}": value for name, value in figures.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the figures once; a resumed run has them already."""
        if self.figures and trainer.global_step == 0:
            for logger in trainer.loggers:
                logger.log_metrics(self.figures, step=0)


class SaveParts(Callback):
    """Leaves files beside the run that say which images it trains on, and which validate.

    Args:
        parts: each a `Split`, a `Holdout`, or None.
        logdir: in which the run has its folder.
    """

    def __init__(self, parts: Sequence[Split | Holdout | None], logdir: Path):
        super().__init__()
        self.parts, self.logdir = [part for part in parts if part is not None], logdir

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them, also when the run goes on in another folder."""
        folder = self.logdir / str(trainer.logger.version)
        for part in self.parts if trainer.is_global_zero else ():
            folder.mkdir(parents=True, exist_ok=True)
            part.write(folder)
