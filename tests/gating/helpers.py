# SPDX-License-Identifier: MIT
"""Small gated encoders and methods."""

from omegaconf import OmegaConf

from solo.backbones import build_encoder
from solo.methods import METHODS
from sparse_ext import enable
from sparse_ext.gating.config import build
from sparse_ext.gating.encoder import patch
from tests.methods.helpers import tiny_cfg

KWARGS = {
    "vicreg": {"proj_hidden_dim": 16, "proj_output_dim": 8},
    "barlow_twins": {"proj_hidden_dim": 16, "proj_output_dim": 8},
    "simclr": {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
    "byol": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 16},
}


def plain_encoder(name="resnet18", width=4, dataset="cifar10"):
    backbone = {"name": name, "kwargs": {"width": width}}
    return build_encoder(tiny_cfg("vicreg", backbone=backbone, data__dataset=dataset))


def gated_encoder(name="vicreg_dual", backbone="resnet18", width=4, dataset="cifar10", **section):
    config = build({"name": name, **section})
    return patch(plain_encoder(backbone, width, dataset), config)


def method(name="vicreg", gating="vicreg_dual", **changes):
    """A tiny method; `gating` is a section, a name or None."""
    cfg = tiny_cfg(name, dict(KWARGS[name]), **{"seed": 5, "optimizer__lr": 0.01, **changes})
    if gating is not None:
        cfg.gating = OmegaConf.create(gating) if isinstance(gating, dict) else gating
        enable(cfg)
    return METHODS[name](METHODS[name].add_and_assert_specific_cfg(cfg))
