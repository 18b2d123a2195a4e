# SPDX-License-Identifier: MIT
"""Distillation of a teacher's features on unlabelled images; the teacher is an encoder that exists.

The student learns to put out the teacher's features, and optionally its pooled stages, for the
same view of an image (feature distillation: Romero et al., "FitNets", 2015; the small encoders of
DINOv2 are made this way). With `init_from` of a pruned copy of the teacher it is recovery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo.backbones import features_dim
from solo.data.catalogue import pretrain_statistics
from solo.errors import ConfigError, did_you_mean
from solo.losses.distill import KINDS, distill_loss_func
from solo.methods.base import BaseMethod
from solo.methods.heads import Head
from solo.methods.teacher import Teacher, stage_features


class Distill(BaseMethod):
    """The mean distance of the student's features from the teacher's, over all large crops.

    `method_kwargs`: `teacher` (a run folder, a weight file, `timm:NAME`), `teacher_backbone`
    (`{name, kwargs, mean, std}` of a file that no run wrote), `loss` (`cosine` or `smooth_l1`),
    `stages` (weight of the stages' distances, 0 = features alone). A student of another width gets
    a linear projection to the teacher's, which trains with it and is not part of the encoder.
    """

    KWARGS = {
        "teacher": str,
        "teacher_backbone": {},
        "loss": "cosine",
        "stages": 0.0,
    }
    HEADS: Mapping[str, Any] = {"projector": Head("z")}
    LARGE_CROPS = None

    def __init__(self, cfg: DictConfig):
        super().__init__(cfg)
        kwargs = cfg.method_kwargs
        self.kind: str = kwargs.loss
        self.stages_weight: float = float(kwargs.stages)
        entry = (cfg.get("augmentations") or [{}])[0]
        named = OmegaConf.to_container(kwargs.teacher_backbone or OmegaConf.create({}))
        teacher = Teacher(
            kwargs.teacher,
            named or None,  # type: ignore[arg-type]
            *pretrain_statistics(cfg.data.dataset, entry),
        )
        # hidden from nn.Module: no part of checkpoints, optimizers and processes' exchanges
        self._hidden = (teacher,)
        width = features_dim(teacher.net)
        self.projector: nn.Module = (
            nn.Identity() if width == self.features_dim else nn.Linear(self.features_dim, width)
        )

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """As `BaseMethod`'s; checks the loss and the weight of the stages.

        Raises:
            ConfigError: an unknown loss, or a negative weight.
        """
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        if kwargs.loss not in KINDS:
            raise ConfigError(
                f"method_kwargs.loss={kwargs.loss} is unknown. {did_you_mean(kwargs.loss, KINDS)}"
            )
        if kwargs.stages < 0:
            raise ConfigError(f"method_kwargs.stages={kwargs.stages} must not be negative.")
        return cfg

    @property
    def teacher(self) -> Teacher:
        """The frozen encoder whose features are learnt."""
        return self._hidden[0]

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """Distance of features, and of stages where they count, plus the classifier's loss."""
        images = batch[1] if isinstance(batch[1], (list, tuple)) else [batch[1]]
        views = images[: self.num_large_crops]
        student: list[list[Tensor]] = []
        with ExitStack() as stack:
            if self.stages_weight:
                read = stack.enter_context(stage_features(self.backbone))
                stack.enter_context(self._after_each_pass(lambda: student.append(read())))
            out = super().training_step(batch, batch_idx)
        loss = torch.zeros((), device=out["loss"].device)
        for index, view in enumerate(views):
            with ExitStack() as stack:
                if self.stages_weight:
                    read = stack.enter_context(stage_features(self.teacher.net))
                wanted = self.teacher(view)
                loss = loss + distill_loss_func(out["z"][index], wanted, self.kind)
                if self.stages_weight:
                    loss = loss + self.stages_weight * self._stages(student[index], read())
        loss = loss / len(views)
        self._log_train(train_distill_loss=loss)
        return loss + out["loss"]

    def _after_each_pass(self, note: Any) -> ExitStack:
        stack = ExitStack()
        handle = self.backbone.register_forward_hook(lambda *_: note())
        stack.callback(handle.remove)
        return stack

    def _stages(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        """Mean distance of pooled stages, those of equal width counted from the last one."""
        pairs = [
            (mine, theirs)
            for mine, theirs in zip(reversed(student), reversed(teacher), strict=False)
            if mine.shape == theirs.shape
        ]
        if not pairs:
            raise ConfigError(
                "method_kwargs.stages: no stage of the student is as wide as the teacher's; leave "
                "it at 0, which compares features through a projection."
            )
        return sum(distill_loss_func(*pair, self.kind) for pair in pairs) / len(pairs)  # type: ignore
