# SPDX-License-Identifier: MIT
"""A frozen teacher encoder, and its features beside a student's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from solo.backbones import build_encoder
from solo.checkpoints import load_run
from solo.checkpoints.files import read_args
from solo.checkpoints.init_from import TIMM, init_encoder, timm_look
from solo.checkpoints.runs import weights_file
from solo.data.catalogue import pretrain_statistics
from solo.errors import ConfigError

# names under which families keep their stages, first one wins
_STAGES = ("stages", "layers", "blocks")


class Teacher:
    """An encoder that is neither trained, nor part of a checkpoint, nor of the module beside it.

    Images come normalised for the student; where the teacher was trained with other statistics
    they are normalised anew for it.

    Args:
        source: the folder or checkpoint of a run, a weight file, or `timm:NAME`.
        backbone: `{"name", "kwargs"}` of the encoder in a weight file that is no run's, and `mean`
            and `std` of its images, where they are not those of the student's.
        mean: channel means that the student's images were normalised with.
        std: channel deviations likewise.

    Raises:
        CheckpointError: the source cannot be opened.
        ConfigError: nothing says which encoder is in the file.
    """

    def __init__(
        self,
        source: str,
        backbone: Mapping[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.source = source
        self.net, args = open_teacher(source, backbone)
        self.net.eval().requires_grad_(False)
        self._change: tuple[Tensor, Tensor] | None = None
        if mean is not None and std is not None and args is not None:
            self._change = _change(mean, std, args)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, F) of images (N, 3, H, W) that are normalised for the student."""
        if next(self.net.parameters()).device != images.device:
            self.net.to(images.device)
        if self._change is not None:
            scale, shift = (value.to(images) for value in self._change)
            images = images * scale + shift
        return self.net(images)


def open_teacher(
    source: str, backbone: Mapping[str, Any] | None
) -> tuple[nn.Module, dict[str, Any] | None]:
    """The encoder that `source` names, and the configuration that says how it sees images: its
    run's, or what timm or `backbone` knows of it; None where nobody does."""
    from omegaconf import OmegaConf

    if not source.startswith(TIMM) and read_args(weights_file(source)) is not None:
        return load_run(source)
    if backbone is None and source.startswith(TIMM):
        backbone = {"name": source.removeprefix(TIMM).partition(".")[0]}
    if backbone is None:
        raise ConfigError(
            f"teacher {source}: there is no args.json beside it, so nothing says which encoder it "
            f"is. Add teacher_backbone={{name: resnet50}}, or any name of timm's."
        )
    look = timm_look(source) if source.startswith(TIMM) else {}
    look |= {key: backbone[key] for key in ("mean", "std") if key in backbone}
    named = {key: value for key, value in backbone.items() if key not in ("mean", "std")}
    cfg = {"method": "simclr", "backbone": named, "data": {"dataset": "custom"}}
    net = build_encoder(OmegaConf.create(cfg))
    init_encoder(net, source)
    return net, {**cfg, "augmentations": [look]} if look else None


def _change(
    mean: Sequence[float], std: Sequence[float], args: Mapping[str, Any]
) -> tuple[Tensor, Tensor] | None:
    """(scale, shift) from the student's normalisation to the teacher's, None if they are equal."""
    entry = (args.get("augmentations") or [{}])[0]
    theirs = pretrain_statistics(args["data"]["dataset"], entry)
    if tuple(theirs[0]) == tuple(mean) and tuple(theirs[1]) == tuple(std):
        return None
    m, s, tm, ts = (torch.tensor(list(v)).view(1, -1, 1, 1) for v in (mean, std, *theirs))
    return s / ts, (m - tm) / ts


# -- stages ----------------------------------------------------------------------------------


def stages(encoder: nn.Module, count: int = 4) -> list[nn.Module]:
    """The modules that end the stages of an encoder: `layer1` to `layer4` of a ResNet, a timm
    model's `stages` or `layers`, every quarter of a ViT's `blocks`.

    Raises:
        ConfigError: it has none of these.
    """
    net = getattr(encoder, "_orig_mod", encoder)
    numbered = [getattr(net, f"layer{i}") for i in range(1, 9) if hasattr(net, f"layer{i}")]
    if numbered:
        return numbered
    for name in _STAGES:
        found = getattr(net, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList) and len(found):
            every = max(1, len(found) // count)
            return list(found)[every - 1 :: every]
    raise ConfigError(f"{type(net).__name__} has no stages that distillation could compare.")


@contextmanager
def stage_features(encoder: nn.Module) -> Iterator[Callable[[], list[Tensor]]]:
    """Context that gives a function for what the stages put out in the last pass, pooled (N, C)."""
    modules = stages(encoder)
    kept: dict[int, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _x, out, i=i: kept.__setitem__(i, _pooled(out)))
        for i, module in enumerate(modules)
    ]
    try:
        yield lambda: [kept[i] for i in range(len(modules))]
    finally:
        for hook in hooks:
            hook.remove()


def _pooled(out: Tensor) -> Tensor:
    """Mean over the positions of a map (N, C, H, W) or of tokens (N, L, C)."""
    return out.flatten(2).mean(2) if out.ndim == 4 else out.mean(1)
