# SPDX-License-Identifier: MIT
"""What a trained encoder is compared with, by the same protocols.

    python -m scripts.experiments.quickstart.baselines FOLDER [--pretrain KEY=VALUE ...]
        [--linear KEY=VALUE ...]

Writes the untrained encoder as the pretraining recipe builds it, as a run folder that the
evaluation programs take like any other, and evaluates raw pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.experiments.programs import compose
from scripts.experiments.quickstart.plan import KNN, LINEAR, PRETRAIN
from solo.data.datasets.digits import SIZE
from solo.files.whole import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import DataLoader


def main(argv: Sequence[str] | None = None) -> None:
    """Write the random encoder, then evaluate raw pixels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pretrain", nargs="*", default=[])
    parser.add_argument("--linear", nargs="*", default=[])
    args = parser.parse_args(argv)
    from solo.programs.app import run_program

    def task() -> None:
        write_random_encoder(args.folder / "random", args.pretrain)
        knn_on_pixels()
        linear_on_pixels(args.folder / "linear-raw", args.linear)

    run_program(task)


def write_random_encoder(folder: Path, overrides: Sequence[str]) -> Path:
    """Save the method of the pretraining recipe before its first step; returns the checkpoint."""
    from lightning.pytorch import seed_everything
    from omegaconf import OmegaConf

    from solo.args.pretrain import parse_cfg
    from solo.checkpoints.writer import write_checkpoint
    from solo.programs.pretrain import build_model

    cfg = compose(PRETRAIN, overrides)
    parse_cfg(cfg)
    seed_everything(cfg.seed)
    model = build_model(cfg)
    run = folder / cfg.method / "0"
    write_json(run / "args.json", OmegaConf.to_container(cfg, resolve=True))
    return write_checkpoint(run / "random.ckpt", {"state_dict": model.state_dict()})


def linear_on_pixels(folder: Path, overrides: Sequence[str]) -> None:
    """The linear program with an encoder that only flattens its image."""
    from lightning.pytorch import seed_everything

    from solo.args.linear import parse_cfg
    from solo.programs.linear import build_data, build_model
    from solo.programs.training import fit

    cfg = compose(LINEAR, overrides)
    cfg.pretrained_feature_extractor = "raw-pixels.ckpt"  # for its label; nothing is opened
    parse_cfg(cfg)
    seed_everything(cfg.seed)
    fit(cfg, build_model(cfg, pixels()), build_data(cfg), folder / "linear")


def knn_on_pixels() -> None:
    """The kNN program on pixels; prints its result as that program does."""
    from solo.programs.knn import run_knn

    (x, x_labels), (y, y_labels) = (_flat(loader) for loader in _loaders())
    options = dict(zip(KNN[::2], KNN[1::2], strict=True))
    k, temperature = int(options["--k"]), float(options["--temperature"])
    acc1, acc5 = run_knn(x, x_labels, y, y_labels, k, temperature, options["--distance_function"])
    print(f"Result: acc@1={acc1}, acc@5={acc5}", flush=True)


def pixels() -> nn.Module:
    """An encoder without weights: the image, flattened."""
    from torch import nn

    flatten = nn.Flatten()
    flatten.num_features = 3 * SIZE * SIZE  # type: ignore[assignment]
    return flatten


def _flat(loader: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All pixels (N, 3072) and labels (N,)."""
    import torch

    images, labels = zip(*loader, strict=True)
    return torch.cat(images).flatten(1), torch.cat(labels)


def _loaders() -> list[DataLoader]:
    from solo.data.classification_dataloader import (
        prepare_datasets,
        prepare_transforms,
        prepare_val_dataloader,
    )

    _, transform = prepare_transforms("digits")
    datasets = prepare_datasets("digits", transform, transform)
    return [prepare_val_dataloader(d, batch_size=256, num_workers=0) for d in datasets]


if __name__ == "__main__":
    main()
