# SPDX-License-Identifier: MIT
"""UMAP pictures of features: while training (AutoUMAP) and of a finished model (OfflineUMAP)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn

from solo.args.check import fill
from solo.args.schema import Pretrain
from solo.errors import ConfigError
from solo.files.whole import whole_file
from solo.monitoring.console import bar, waiting
from solo.utils.checkpointer import Checkpointer
from solo.utils.ranks import concat_all_gather_no_grad

NAMED_CLASSES = 30  # that a legend has room for


class AutoUMAP(Callback):
    """Draws the validation features of `module.backbone` every `frequency` epochs.

    Writes `<logdir>/<version>/<name>-<version>-ep=<epoch>.pdf` and, with wandb, logs the image
    `validation_umap`.

    Args:
        name: of the run.
        logdir: folder of the method.
        frequency: epochs between two pictures.
        keep_previous: keep all pictures, not only the newest.
        color_palette: seaborn palette of the classes.
    """

    def __init__(
        self,
        name: str,
        logdir: str | Path = Path("auto_umap"),
        frequency: int = 1,
        keep_previous: bool = False,
        color_palette: str = "hls",
    ):
        super().__init__()
        self.name = name
        self.logdir = Path(logdir)
        self.frequency = frequency
        self.keep_previous = keep_previous
        self.color_palette = color_palette
        self.last_path: Path | None = None

    @staticmethod
    def add_and_assert_specific_cfg(cfg: DictConfig) -> DictConfig:
        """Set the defaults of the section `auto_umap`."""
        fill(cfg, Pretrain, "auto_umap")
        return cfg

    @staticmethod
    def random_string(letter_count: int = 4, digit_count: int = 4) -> str:
        """A random name for a run, as `Checkpointer.random_string` makes it."""
        return Checkpointer.random_string(letter_count, digit_count)

    def initial_setup(self, trainer: Trainer) -> None:
        """Decide on the folder, named as the run's checkpoints are, and create it."""
        version = None
        if trainer.is_global_zero:
            offline = trainer.logger is None
            version = f"offline-{self.random_string()}" if offline else trainer.logger.version
        version = str(trainer.strategy.broadcast(version))
        self.path = self.logdir / version
        self.umap_placeholder = f"{self.name}-{version}" + "-ep={}.pdf"
        if trainer.is_global_zero:
            self.path.mkdir(parents=True, exist_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the folder; a missing library is reported before the first epoch."""
        _libraries()
        self.initial_setup(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation set at the end of every `frequency`-th epoch."""
        if trainer.current_epoch % self.frequency == 0 and not trainer.sanity_checking:
            self.plot(trainer, pl_module)

    def plot(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the features of the validation set; all ranks take part."""
        loaders = trainer.val_dataloaders
        loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
        if loader is None:
            return
        X, y = collect(module.backbone, loader, module.device)
        X, y = (concat_all_gather_no_grad(part.to(module.device)).cpu() for part in (X, y))
        if not trainer.is_global_zero:
            return
        path = self.path / self.umap_placeholder.format(trainer.current_epoch)
        title = f"{self.name}, epoch {trainer.current_epoch}: {len(y):,} validation images"
        classes = class_names(loader)
        figure = draw(embed(X.numpy()), y.numpy(), path, self.color_palette, title, classes)
        _log_picture(trainer, figure)
        if self.last_path not in (None, path) and not self.keep_previous:
            self.last_path.unlink(missing_ok=True)
        self.last_path = path


class OfflineUMAP:
    """Draws the features of a trained model.

    Args:
        color_palette: seaborn palette of the classes.
    """

    def __init__(self, color_palette: str = "hls"):
        self.color_palette = color_palette

    def plot(
        self,
        device: str | torch.device,
        model: nn.Module,
        dataloader: Iterable,
        plot_path: str | Path | Sequence[str | Path] = "umap.pdf",
        title: str = "",
    ) -> None:
        """Embed the features of a loader and write the picture to `plot_path`.

        Args:
            device: where `model` runs.
            model: images to features (N, F), or to a dictionary with `feats`.
            dataloader: batches (images, targets).
            plot_path: file, whose suffix decides the format; or several files.
            title: above the picture.

        Raises:
            ConfigError: umap-learn or seaborn is not installed.
        """
        _libraries()
        X, y = collect(model.to(device), dataloader, device)
        points, labels = embed(X.cpu().numpy()), y.cpu().numpy()
        paths = [plot_path] if isinstance(plot_path, (str, Path)) else plot_path
        for path in map(Path, paths):
            draw(points, labels, path, self.color_palette, title, class_names(dataloader))


def _libraries() -> tuple[Any, Any]:
    try:
        import seaborn
        import umap
    except ImportError as error:
        raise ConfigError(
            f"UMAP pictures need '{error.name}': pip install umap-learn seaborn matplotlib pandas, "
            "or set auto_umap.enabled=False"
        ) from error
    return umap, seaborn


def embed(features: np.ndarray, seed: int | None = None) -> np.ndarray:
    """Two-dimensional UMAP embedding (N, 2) of features (N, F); with a seed always the same."""
    umap, _ = _libraries()
    options: dict[str, Any] = {} if seed is None else {"random_state": seed, "n_jobs": 1}
    neighbours = min(15, len(features) - 1)
    with waiting(f"UMAP of {len(features):,} images"):
        return umap.UMAP(n_components=2, n_neighbors=neighbours, **options).fit_transform(features)


def class_names(loader: Any) -> list[str]:
    """Names of the classes of a loader's images; empty where its data set names none."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and not hasattr(dataset, "classes") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset  # of a Subset
    return [str(name) for name in getattr(dataset, "classes", None) or ()]


@torch.no_grad()
def collect(model: Callable, loader: Iterable, device: Any) -> tuple[Tensor, Tensor]:
    """Features and labels of a whole loader; the model is in eval mode meanwhile."""
    training = model.training
    model.eval()
    feats, labels = [], []
    for images, targets in bar(loader, "features"):
        out = model(images.to(device, non_blocking=True))
        feats.append((out["feats"] if isinstance(out, dict) else out).float())
        labels.append(targets.to(device))
    model.train(training)
    return torch.cat(feats), torch.cat(labels)


def draw(
    points: np.ndarray,
    labels: np.ndarray,
    path: Path,
    palette: str = "hls",
    title: str = "",
    classes: Sequence[str] = (),
) -> Any:
    """One dot per image, coloured by class; written through a temporary file.

    Args:
        points: (N, 2).
        labels: (N,).
        path: of the picture; its suffix decides the format.
        palette: seaborn's, of the classes.
        title: above the picture.
        classes: names by label; without them the legend has the labels.

    Returns:
        The figure.
    """
    _, seaborn = _libraries()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    found = np.unique(labels)
    for label, colour in zip(found, seaborn.color_palette(palette, len(found)), strict=True):
        own = points[labels == label]
        name = classes[label] if 0 <= label < len(classes) else str(label)
        axes.scatter(own[:, 0], own[:, 1], 18, color=[colour], alpha=0.5, linewidths=0, label=name)
    axes.set(title=title, xticks=[], yticks=[])
    if 1 < len(found) <= NAMED_CLASSES:
        columns = min(5, len(found))
        legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        for handle in legend.legend_handles:
            handle.set_alpha(1)
    elif len(found) > NAMED_CLASSES:
        axes.set_xlabel(f"colours: {len(found)} classes")
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "pdf", dpi=150)
    return figure


def _log_picture(trainer: Trainer, figure: Any) -> None:
    from lightning.pytorch.loggers import WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({"validation_umap": wandb.Image(figure)}, commit=False)
