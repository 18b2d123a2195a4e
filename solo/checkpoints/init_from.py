# SPDX-License-Identifier: MIT
"""`init_from`: pretraining that starts from an encoder that exists; a report says what matched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from solo import extensions
from solo.checkpoints.files import read_checkpoint
from solo.checkpoints.loading import _some, check_finite
from solo.checkpoints.runs import weights_file
from solo.checkpoints.sources import find_encoder, fit, strangers
from solo.errors import CheckpointError, did_you_mean

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

TIMM = "timm:"
#: counters that a file may lack: they do not change what an encoder computes
_COUNTERS = "num_batches_tracked"


@dataclass(frozen=True)
class InitReport:
    """What an encoder started from: the source, what matched, what did not.

    Attributes:
        source: file or name.
        place: where in the file the encoder was.
        matched: tensors that were taken over.
        values: numbers in them.
        resized: embeddings that were interpolated, with both shapes.
        random: tensors that stay as they were initialised, because the user allowed it.
        left_out: tensors of the file that this encoder does not have.
    """

    source: str
    place: str
    matched: int
    values: int
    resized: tuple[str, ...]
    random: tuple[str, ...]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"Started from {self.source}" + (f" ({self.place})" if self.place else "") + ": "
            f"{self.matched} tensors, {self.values:,} values."
        ]
        lines += [f"  resized: {text}" for text in self.resized]
        if self.random:
            lines.append(f"  left at random, as init_allow_missing says: {_some(self.random)}")
        if self.left_out:
            lines.append(f"  in the file and not in the encoder: {_some(self.left_out)}")
        return "\n".join(lines)


def read_source(source: str) -> dict[str, Any]:
    """The content of the file or model that `init_from` names.

    Args:
        source: a weight file, the folder of a run, or `timm:NAME` for weights that timm downloads.

    Raises:
        CheckpointError: it cannot be read; for timm's weights without a network the message says
            which file to fetch.
    """
    if source.startswith(TIMM):
        return _from_timm(source.removeprefix(TIMM))
    return read_checkpoint(weights_file(source))


def timm_look(source: str) -> dict[str, Any]:
    """Side, mean and std of the images of `timm:NAME`, named as in `augmentations`.

    Empty where timm knows no such weights: opening them says what is wrong with the name.
    """
    import timm

    try:
        known = timm.get_pretrained_cfg(source.removeprefix(TIMM), allow_unregistered=False)
    except RuntimeError:
        known = None
    if known is None:
        return {}
    return {"crop_size": known.input_size[-1], "mean": list(known.mean), "std": list(known.std)}


def init_encoder(
    backbone: nn.Module,
    source: str,
    allow_missing: Iterable[str] = (),
    content: Mapping[str, Any] | None = None,
) -> InitReport:
    """Give an encoder the weights of another, in place; all of its tensors or none.

    Position embeddings and patch embeddings of another image or patch size are interpolated.

    Args:
        backbone: as built for training, with the masks that the run's configuration asks for.
        source: see `read_source`.
        allow_missing: globs of tensor names that may stay as they were initialised.
        content: what `read_source` returned, if it has been read already.

    Raises:
        CheckpointError: the source cannot be read, holds no such encoder, or lacks tensors.
    """
    content = read_source(source) if content is None else content
    try:
        found = find_encoder(content, backbone)
    except CheckpointError as error:
        raise CheckpointError(f"init_from={source}: {error}") from error
    state: Mapping[str, Tensor] = found.state
    for extension in extensions.registered():
        state = extension.initial_state(backbone, state)
    fitted = fit(state, backbone)
    own = backbone.state_dict()
    if more := strangers(fitted.state, own):
        raise CheckpointError(
            f"init_from={source} holds a larger encoder than this {type(backbone).__name__}, which "
            f"has no {_some(more)}: choose backbone.name and backbone.kwargs of the encoder in it."
        )
    optional = {key for e in extensions.registered() for key in e.training_state(own)}
    random = _missing(own, fitted.state, optional, source, found.place, allow_missing)
    taken = {key: value for key, value in fitted.state.items() if key in own and key not in random}
    check_finite(taken, f"init_from={source}")
    backbone.load_state_dict(taken, strict=False)  # strictness: _missing
    return InitReport(
        source=source,
        place=found.place,
        matched=len(taken),
        values=sum(value.numel() for value in taken.values()),
        resized=tuple(f"{name} from {a} to {b}" for name, a, b in fitted.resized),
        random=tuple(sorted(random)),
        left_out=tuple(sorted(set(fitted.state) - set(own))),
    )


def init_method(module: LightningModule, source: str, allow_missing: Iterable[str] = ()) -> str:
    """Start a method's encoders, online and momentum, from the same source; returns the report.

    Args:
        module: a method of `solo`, just built.
        source: see `read_source`.
        allow_missing: see `init_encoder`.

    Raises:
        CheckpointError: see `init_encoder`.
    """
    content = read_source(source)
    backbone: Any = module.backbone
    report = init_encoder(backbone, source, allow_missing, content)
    momentum: Any = getattr(module, "momentum_backbone", None)
    if momentum is not None:
        init_encoder(momentum, source, allow_missing, content)  # it takes a slim source's widths
        momentum.load_state_dict(backbone.state_dict())
    return str(report)


def _missing(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    optional: set[str],
    source: str,
    place: str,
    allow: Iterable[str],
) -> set[str]:
    """Tensors that stay random with the user's leave; anything else that lacks is an error."""
    lacking = {
        key: "is not in the file"
        if key not in state
        else f"is {tuple(state[key].shape)} in the file and {tuple(value.shape)} here"
        for key, value in own.items()
        if key not in optional and (key not in state or state[key].shape != value.shape)
    }
    allow = list(allow)
    for glob in allow:
        if not any(fnmatchcase(key, glob) for key in own):
            raise CheckpointError(
                f"init_allow_missing: the encoder has no tensor '{glob}'. {did_you_mean(glob, own)}"
            )
    refused = {
        key: why
        for key, why in lacking.items()
        if not key.endswith(_COUNTERS) and not any(fnmatchcase(key, glob) for glob in allow)
    }
    if refused:
        facts = [f"{key} {why}" for key, why in refused.items()]
        raise CheckpointError(
            f"init_from={source}"
            + (f" ({place})" if place else "")
            + f" does not fit this encoder: {_some(facts)}. Nothing starts at random unasked: "
            f"choose backbone.name and backbone.kwargs of the encoder in the file"
            f"{_stem(refused)}, or name what may be random, as in "
            f"init_allow_missing=['{next(iter(refused))}']."
        )
    return set(lacking)


def _stem(refused: Mapping[str, str]) -> str:
    if all(key.startswith("conv1.") for key in refused):
        return " (for small images a ResNet gets a 3x3 stem, which files of ImageNet do not have)"
    return ""


def _from_timm(name: str) -> dict[str, Any]:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise CheckpointError(
            f"init_from={TIMM}{name}: timm has no model '{architecture}'. "
            f"{did_you_mean(architecture, timm.list_models())}"
        )
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # downloads raise whatever their library raises
        config = timm.get_pretrained_cfg(name)
        place = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
        fetch = (
            f"fetch model.safetensors of https://huggingface.co/{place}"
            if place and "://" not in str(place)
            else f"fetch {place}"
            if place
            else "timm lists no weights under this name (timm.list_pretrained() does)"
        )
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"init_from={TIMM}{name}: timm could not get the weights ({reason}). On a machine "
            f"with a network {fetch}, and give that file: init_from=/path/to/the/file."
        ) from error
    return {"state_dict": model.state_dict()}
