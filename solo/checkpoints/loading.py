# SPDX-License-Identifier: MIT
"""The one place that opens weight files, and that puts an encoder's weights into an encoder.

Loading is strict: either every tensor of the encoder comes from the file, or a `CheckpointError`
says what did not fit. An encoder is never silently left at its random initialisation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solo import extensions
from solo.checkpoints.files import PREFIXES, Encoder, encoder_state, read_args, read_checkpoint
from solo.checkpoints.sources import find_encoder, strangers
from solo.errors import CheckpointError

__all__ = [
    "LoadReport",
    "encoder_state",
    "load_encoder",
    "read_args",
    "read_checkpoint",
]


@dataclass(frozen=True)
class LoadReport:
    """What `load_encoder` loaded, what it left out, and what was measured.

    Attributes:
        backbone: the encoder with the weights (extensions may have changed its modules).
        source: file, or "checkpoint".
        encoder: "online" or "momentum".
        matched: tensors that were loaded: all that the encoder has.
        values: numbers in them.
        left_out: keys of the file that the encoder does not need (training state, classifiers).
        method: method that trained it, where `args.json` says so.
        figures: what the extensions measured on the encoder, such as its sparsity.
    """

    backbone: nn.Module
    source: str
    encoder: str
    matched: int
    values: int
    left_out: tuple[str, ...]
    method: str | None
    figures: dict[str, float]

    def __str__(self) -> str:
        text = (
            f"{self.source}: loaded all {self.matched} tensors ({self.values:,} values) "
            f"of the {self.encoder} encoder"
        )
        text += f" of {self.method}" if self.method else ""
        text += f"; left out {_some(self.left_out)}" if self.left_out else ""
        figures = ", ".join(f"{name} {_number(value)}" for name, value in self.figures.items())
        return text + (f"; measured: {figures}" if figures else "")


def load_encoder(
    backbone: nn.Module,
    checkpoint: str | Path | Mapping[str, Any],
    encoder: Encoder = "online",
    *,
    source: str | Path = "checkpoint",
    args: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Load an encoder's weights into `backbone`, in place; all of them or none.

    The registered extensions first give it the modules that the checkpoint needs (masks).

    Args:
        backbone: as `solo.backbones.build_encoder` makes it.
        checkpoint: a file, or what `read_checkpoint` returned.
        encoder: which encoder of a momentum method.
        source: what messages call a checkpoint that is no file.
        args: configuration of its run; for a file it is read from beside it.

    Raises:
        CheckpointError: the file cannot be read, has no such encoder, or does not fit.
    """
    if isinstance(checkpoint, (str, Path)):
        source, args = checkpoint, read_args(checkpoint)
        checkpoint = read_checkpoint(checkpoint)
    source = str(source)
    if args is None:  # maybe no run of ours or upstream's: tensors may stand behind any prefix
        state, foreign = _located(checkpoint, backbone, encoder, source)
    else:
        state, foreign = encoder_state(checkpoint, encoder), False
    _check_heads(backbone, source, args)
    for extension in extensions.registered():
        backbone = extension.rebuild(backbone, state, checkpoint)
    own = backbone.state_dict()
    optional = _training_keys(own)
    left_out = (_training_keys(state) | _heads(state, own, foreign)) - set(own)
    found = extensions.evaluated(state)
    state = {key: value for key, value in found.items() if key not in left_out}
    _check_fit(state, own, optional, source, args)
    check_finite(state, source)
    backbone.load_state_dict(state, strict=False)  # strictness: _check_fit
    return LoadReport(
        backbone=backbone,
        source=source,
        encoder=encoder,
        matched=len(state),
        values=sum(value.numel() for value in state.values()),
        left_out=tuple(sorted(left_out)),
        method=_trained_by(args),
        figures={k: v for e in extensions.registered() for k, v in e.describe(backbone).items()},
    )


def _trained_by(args: Mapping[str, Any] | None) -> str | None:
    return None if args is None else args.get("pretrain_method") or args.get("method")


def _training_keys(state: Mapping[str, Tensor]) -> set[str]:
    return {key for e in extensions.registered() for key in e.training_state(state)}


def _located(
    checkpoint: Mapping[str, Any], backbone: nn.Module, encoder: Encoder, source: str
) -> tuple[dict[str, Tensor], bool]:
    """The place of the file where most of the encoder's names are, and whether no run wrote it."""
    names = set(backbone.state_dict())
    try:
        state, mistake = encoder_state(checkpoint, encoder), None
    except CheckpointError as error:
        state, mistake = {}, error
    run = any(key.startswith(PREFIXES[encoder]) for key in checkpoint["state_dict"])
    if names <= set(state):
        return state, not run
    try:
        found = find_encoder(checkpoint, backbone, encoder)
    except CheckpointError as error:
        raise mistake or CheckpointError(f"{source}: {error}") from error
    more = len(names & set(found.state)) > len(names & set(state))
    if mistake and not more:
        raise mistake
    return (found.state, True) if more else (state, not run)


def _heads(state: Mapping[str, Tensor], own: Mapping[str, Tensor], foreign: bool) -> set[str]:
    """Heads and decoders in a file that no run wrote; a run's encoder has none."""
    more = set(state) - set(own)
    return more - set(strangers(state, own)) if foreign else set()


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError if weights are NaN or infinite; messages begin with `source`."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(
                f"{source}: '{key}' holds values that are NaN or infinite, so nothing can be "
                "computed from these weights. Take a checkpoint from before the run went wrong."
            )


def _check_fit(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    optional: set[str],
    source: str,
    args: Mapping[str, Any] | None,
) -> None:
    missing = [key for key in own if key not in state and key not in optional]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} here"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if not (missing or unexpected or shapes):
        return
    facts = [
        f"{len(found)} {title}: {_some(found)}"
        for title, found in (
            ("tensors of the encoder are not in the file", missing),
            ("tensors of the file are not in the encoder", unexpected),
            ("shapes differ", shapes),
        )
        if found
    ]
    hint = _hint(missing, unexpected, shapes, args)
    raise CheckpointError(f"{source} does not fit the encoder.\n  " + "\n  ".join([*facts, hint]))


def _hint(missing: list, unexpected: list, shapes: list, args: Mapping[str, Any] | None) -> str:
    if not shapes:
        found = (e.misfit(missing, unexpected) for e in extensions.registered())
        if hint := next(filter(None, found), ""):
            return hint
        if unexpected and not missing:
            return (
                "The file has all that this encoder needs, and more. If an extension of solo "
                "trained it, register that extension before loading."
            )
    if not (missing or unexpected) and all(text.startswith("conv1.weight") for text in shapes):
        return (
            "The stems differ: ResNets get a 3x3 stem for cifar10, cifar100 and digits. "
            "Set data.dataset to the data set that the encoder was trained on."
        )
    if not (missing or unexpected) and all(text.startswith("pos_embed") for text in shapes):
        return "Set backbone.kwargs.img_size and patch_size as they were in training."
    trained = (args or {}).get("backbone")
    if trained:
        kwargs = f" and backbone.kwargs={trained['kwargs']}" if trained.get("kwargs") else ""
        return f"It was trained with backbone.name={trained.get('name')}{kwargs} (its args.json)."
    return "Check backbone.name and backbone.kwargs: this is another architecture."


def _check_heads(backbone: nn.Module, source: str, args: Mapping[str, Any] | None) -> None:
    """ViTs of MAE and MoCo v3 have other numbers of heads, which no shape shows."""
    from solo.backbones import BACKBONES

    trained = (args or {}).get("backbone") or {}
    if not trained.get("name", "").startswith("vit_") or trained["name"] not in BACKBONES:
        return
    method = _trained_by(args)
    with torch.device("meta"):
        original = BACKBONES[trained["name"]](method, **(trained.get("kwargs") or {}))
    heads = [
        getattr(getattr(next(iter(net.blocks), None), "attn", None), "num_heads", None)
        for net in (original, backbone)
        if hasattr(net, "blocks")
    ]
    if len(heads) == 2 and None not in heads and heads[0] != heads[1]:
        raise CheckpointError(
            f"{source} was trained by '{method}', whose {trained['name']} has {heads[0]} attention "
            f"heads; this encoder has {heads[1]}. Set pretrain_method: {method}."
        )


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"


def _some(items: Iterable[str], limit: int = 3) -> str:
    items = list(items)
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
