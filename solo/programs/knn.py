# SPDX-License-Identifier: MIT
"""k-nearest-neighbour evaluation of a pretrained checkpoint."""

from __future__ import annotations

from argparse import Namespace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from solo import extensions
from solo.data.catalogue import info_of
from solo.errors import CheckpointError, ConfigError
from solo.monitoring.loggers import last_weights
from solo.monitoring.quiet import quiet
from solo.programs.closing import tell_run
from solo.programs.evaluation import (
    Features,
    device_of,
    evaluation_loaders,
    extract_features,
    held_out,
    load_method,
)
from solo.utils.knn import WeightedKNNClassifier


@torch.no_grad()
def run_knn(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    k: int,
    T: float | None,
    distance_fx: str,
) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent of a weighted vote of `k` neighbours.

    Args:
        train_features: (N, F); train_targets: (N,).
        test_features: (M, F); test_targets: (M,).
        k: neighbours.
        T: temperature of the cosine weight; unused by the euclidean distance.
        distance_fx: `cosine` or `euclidean`.
    """
    knn = WeightedKNNClassifier(k=k, T=0.07 if T is None else T, distance_fx=distance_fx)
    knn(
        train_features=train_features,
        train_targets=train_targets,
        test_features=test_features,
        test_targets=test_targets,
    )
    return knn.compute()


def knn(args: Namespace) -> list[dict]:
    """Run `main_knn.py`; prints and returns one result per combination of the arguments.

    Raises:
        SoloError: a mistake in the arguments, the checkpoint or the data.
    """
    if args.no_labels:
        raise ConfigError("--no_labels: a nearest-neighbour accuracy needs labels")
    missing = args.val_data_path is None and info_of(args.dataset).path == "required"
    if missing and held_out(args) is None:
        raise ConfigError("--val_data_path is missing: the images whose neighbours vote")
    quiet()
    device = device_of(args.device)
    model = load_method(
        args.pretrained_checkpoint_dir, args.eval_encoder, extensions.evaluation_settings(args)
    )
    features = Features(model, args.eval_encoder).to(device)
    backbone = model.momentum_backbone if args.eval_encoder == "momentum" else model.backbone
    parts = []
    for loader in evaluation_loaders(args):
        extensions.collect(backbone)
        parts.append(extract_features(loader, features))
    train, test = parts
    if max(args.k) > len(train[2]):
        raise ConfigError(
            f"--k {max(args.k)}: there are only {len(train[2])} training images to be neighbours"
        )
    figures = {k: v for k, v in extensions.collect(backbone).items() if "/" not in k}
    for name, value in figures.items():
        print(f"{name}: {value:.6g} (validation images)")
    results = []
    for kind, k, distance in product(args.feature_type, args.k, args.distance_function):
        if kind == "projector":
            _check_projector(train[1], model, args.eval_encoder)
        x, y = ((part[0] if kind == "backbone" else part[1]).to(device) for part in (train, test))
        for T in args.temperature if distance == "cosine" else [None]:
            print(f"---\nRunning k-NN with params: {distance=}, {k=}, {T=}, features={kind}...")
            acc1, acc5 = run_knn(x, train[2].to(device), y, test[2].to(device), k, T, distance)
            print(f"Result: acc@1={acc1}, acc@5={acc5}")
            found = {"feature_type": kind, "distance_function": distance, "k": k, "temperature": T}
            results.append({**found, **figures, "acc1": acc1, "acc5": acc5})
    _keep(args, results, [*figures, "acc1", "acc5"])
    return results


def _keep(args: Namespace, results: list[dict], figures: list[str]) -> None:
    """Write the results beside the run, and say where."""
    names = ("dataset", "val_data_path", "data_fraction", "image_size")
    given = {name: getattr(args, name, None) for name in names}
    asked = {name: str(v) if isinstance(v, Path) else v for name, v in given.items()}
    weights = last_weights(Path(args.pretrained_checkpoint_dir))
    asked |= {"encoder": args.eval_encoder, "checkpoint": weights.name if weights else None}
    entries = [{**asked, **result} for result in results]
    path = tell_run(args.pretrained_checkpoint_dir, "knn", entries, figures)
    if path is not None:
        print(f"Results: {path}")


def _check_projector(z: Tensor | None, model: torch.nn.Module, encoder: str) -> None:
    head = "projector" if encoder == "online" else "momentum_projector"
    if z is None or (hasattr(model, head) and head not in model.loaded_heads):
        raise CheckpointError(
            f"--feature_type projector: the {encoder} encoder of this checkpoint has no projector; "
            "use --feature_type backbone"
        )
