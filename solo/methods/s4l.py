# SPDX-License-Identifier: MIT
"""S4L-Rotation (Zhai et al. 2019): labels of some images, rotations of all (weight 1 each)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from solo.data.datasets.folders import item_labels
from solo.data.datasets.splits import FRACTION_OF, subset_indices
from solo.errors import ConfigError, did_you_mean
from solo.methods.rotnet import RotNet
from solo.methods.supervised import LabelsMixin
from solo.utils.misc import omegaconf_select


class S4L(LabelsMixin, RotNet):
    """RotNet whose classifier reaches the encoder on the images that have a label.

    As in the paper the labelled images are classified after rotation. Which they are follows from
    the data set alone: the same as a supervised run with `data.fraction` and `data.fraction_of`.

    Raises:
        ConfigError: for a fraction out of range, or data whose labels nobody knows beforehand.
    """

    KWARGS = {**RotNet.KWARGS, "labelled": 0.1, "labelled_of": "images"}

    @classmethod
    def add_and_assert_specific_cfg(cls, cfg: DictConfig) -> DictConfig:
        """Also checks the two keys that choose the labelled images."""
        cfg = super().add_and_assert_specific_cfg(cfg)
        kwargs = cfg.method_kwargs
        if not 0 < kwargs.labelled < 1:
            raise ConfigError(
                f"method_kwargs.labelled={kwargs.labelled} must be between 0 and 1: "
                "0.1 uses the labels of one image in ten"
            )
        if kwargs.labelled_of not in FRACTION_OF:
            hint = did_you_mean(kwargs.labelled_of, FRACTION_OF)
            raise ConfigError(f"method_kwargs.labelled_of='{kwargs.labelled_of}'. {hint}")
        if omegaconf_select(cfg, "data.format") == "dali":
            raise ConfigError("s4l must know all labels beforehand: use data.format=image_folder")
        return cfg

    def on_train_start(self) -> None:
        """Choose the labelled images from the training set's labels."""
        super().on_train_start()
        self.choose_labelled(item_labels(self.trainer.train_dataloader.dataset))

    def choose_labelled(self, labels: Sequence[int] | None) -> None:
        """Decide for which images of the data set the labels are used.

        Args:
            labels: of the whole training set, by index.

        Raises:
            ConfigError: the data set has no labels.
        """
        if labels is None:
            raise ConfigError("s4l needs a training set with labels")
        kwargs = self.cfg.method_kwargs
        kept = subset_indices(len(labels), labels, kwargs.labelled, kwargs.labelled_of)
        self.labelled = torch.zeros(len(labels), dtype=torch.bool, device=self.device)
        self.labelled[torch.as_tensor(kept, device=self.device)] = True

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        """RotNet's step; an image without a label has target -1, which the classifier skips."""
        indexes, X, targets = batch
        return super().training_step(
            [indexes, X, targets.masked_fill(~self.labelled[indexes], -1)], batch_idx
        )
