# SPDX-License-Identifier: MIT
"""How a cell is trained and evaluated: recipes and the keys behind them, as anyone would write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.experiments.leaderboard.cells import Cell
from scripts.experiments.programs import ROOT, fingerprint
from solo.errors import ConfigError, DataError, did_you_mean

KNN = ("--k", "20", "--distance_function", "cosine", "--temperature", "0.07")


@dataclass(frozen=True)
class Protocol:
    """A data set's recipe.

    Attributes:
        title: for people.
        pretrain: YAML file of the pretraining, from the repository's root.
        linear: YAML file of the linear evaluation.
        dataset: as `main_knn.py` calls it.
        steps_per_epoch: optimizer steps, which the searched settings count in.
        overrides: further `key=value` for every pretraining.
        evaluation: further `key=value` for every linear evaluation.
        neighbours: further arguments of `main_knn.py`.
        encoders: which encoders the method has.
        needs_data: the command line names a folder with `train/CLASS/` and `val/CLASS/`.
        workers: processes that read images for kNN.
        resumes: a training that was cut off goes on; otherwise it begins again.
    """

    title: str
    pretrain: str
    linear: str
    dataset: str
    steps_per_epoch: int
    overrides: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    encoders: tuple[str, ...] = ("online",)
    needs_data: bool = False
    workers: int = 0
    resumes: bool = False

    def pretraining(self, cell: Cell, setting: str | None) -> tuple[str, ...]:
        """`key=value` of a cell's pretraining, without its folder.

        Args:
            cell: what to train.
            setting: the choice of `SETTINGS` to train with, None where there is none.
        """
        values = [*self.overrides, f"++seed={cell.seed}", *section(cell)]
        if setting is not None:
            from scripts.experiments.leaderboard.cells import SETTINGS

            epoch = str(self.steps_per_epoch)
            values += [v.format(epoch=epoch) for v in SETTINGS[cell.method][setting]]
        return tuple(values)

    def fingerprint(self, cell: Cell) -> str:
        """Of everything that a cell's result depends on but the code and the place of the data."""
        views = (ROOT / self.pretrain).parent.glob("augmentations/*.yaml")
        paths = (ROOT / self.pretrain, ROOT / self.linear, *sorted(views))
        files = [path.read_text("utf-8") for path in paths]
        values = (*self.pretraining(cell, cell.setting), *self.evaluation)
        return fingerprint((*files, self.linear, *values, *KNN, *self.neighbours))

    def images(self, folder: Path | None) -> tuple[list[str], list[str]]:
        """`key=value` for the training programs, and arguments of `main_knn.py`, for the images.

        Raises:
            ConfigError: a folder is needed and not given, or given and not needed.
            DataError: it has no `train` or no `val`.
        """
        if self.needs_data != (folder is not None):
            what = "needs --data FOLDER" if self.needs_data else "takes no --data"
            raise ConfigError(f"This leaderboard ({self.title}) {what}.")
        if folder is None:
            return [], []
        for part in ("train", "val"):
            if not (folder / part).is_dir():
                raise DataError(f"--data {folder}: there is no folder '{part}' in it.")
        parts = {part: folder.resolve() / part for part in ("train", "val")}
        values = [f"data.{part}_path='{path}'" for part, path in parts.items()]
        arguments = [text for p, path in parts.items() for text in (f"--{p}_data_path", str(path))]
        return values, arguments


PROTOCOLS: dict[str, Protocol] = {
    "digits": Protocol(
        title="the embedded digits",
        pretrain="scripts/pretrain/digits/lejepa.yaml",
        linear="scripts/linear/digits/linear.yaml",
        dataset="digits",
        steps_per_epoch=44,
        overrides=("++quality.enabled=False",),
    ),
    "digits-mocov3": Protocol(
        title="the embedded digits, with an encoder pair",
        pretrain="scripts/pretrain/digits/mocov3.yaml",
        linear="scripts/linear/digits/linear.yaml",
        dataset="digits",
        steps_per_epoch=44,
        overrides=("++quality.enabled=False",),
    ),
    "cifar": Protocol(
        title="CIFAR-10",
        pretrain="scripts/sparse/cifar10/leaderboard/pretrain.yaml",
        linear="scripts/sparse/cifar10/leaderboard/linear.yaml",
        dataset="cifar10",
        steps_per_epoch=390,
        overrides=("++quality.enabled=False",),
        neighbours=("--image_size", "32"),
        needs_data=True,
        resumes=True,
    ),
}


def protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"There is no leaderboard '{name}'. {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def section(cell: Cell) -> list[str]:
    """`+sparse=...` or `+gating=...` of a cell, with its level.

    Layers compute densely: which of them a sparse kernel is faster for depends on the machine, and
    with it the last bits of their results.
    """
    if cell.method == "dense":
        return []
    if cell.gated:
        budget = [] if cell.budget is None else [f"gating.budget={cell.budget}"]
        return [f"+gating={cell.method}", *budget]
    values = [f"+sparse={cell.method}", "sparse.kernel=dense"]
    if cell.granularity != "element":
        values.append(f"sparse.granularity='{cell.granularity}'")
    if ":" not in cell.granularity:  # N:M has its sparsity in its name, in every group
        values.append(f"sparse.final={cell.sparsity}")
    return values


def chosen(results: Mapping[str, Mapping], candidates: list[Cell]) -> str | None:
    """The setting with the best linear accuracy of those searched; the first one among equals.

    Args:
        results: finished cells by name.
        candidates: the cells of the search; empty where there is nothing to choose.
    """
    found = [cell for cell in candidates if cell.name in results]
    if not candidates:
        return None
    if not found:
        raise ConfigError(f"No search of {candidates[0].method} has finished: run that first.")
    return max(found, key=lambda cell: results[cell.name]["linear_acc1"]).setting


def run_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell's run, its evaluation and `cell.json` lie."""
    return folder / "runs" / cell.name
