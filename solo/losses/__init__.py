# SPDX-License-Identifier: MIT
"""Self-supervised losses: pure functions of tensors (DINO's, which keeps a centre, is a module).

Every loss is a scalar, the mean over the local batch; where negatives or statistics come from all
processes they are gathered here, so that callers pass what their own process computed.
"""

from solo.losses.barlow import barlow_loss_func
from solo.losses.byol import byol_loss_func
from solo.losses.deepclusterv2 import deepclusterv2_loss_func
from solo.losses.dino import DINOLoss, dino_loss_func
from solo.losses.dinov2 import koleo_loss_func
from solo.losses.distill import distill_loss_func
from solo.losses.exemplar import exemplar_loss_func
from solo.losses.ibot import ibot_patch_loss_func
from solo.losses.lejepa import lejepa_loss_func, sigreg
from solo.losses.mae import mae_loss_func
from solo.losses.mocov2plus import mocov2plus_loss_func
from solo.losses.mocov3 import mocov3_loss_func
from solo.losses.multilabel import multilabel_loss_func
from solo.losses.nnclr import nnclr_loss_func
from solo.losses.npid import npid_loss_func, npid_softmax_loss_func
from solo.losses.ressl import ressl_loss_func
from solo.losses.simclr import simclr_loss_func
from solo.losses.simsiam import simsiam_loss_func
from solo.losses.swav import swav_loss_func
from solo.losses.vibcreg import vibcreg_loss_func
from solo.losses.vicreg import vicreg_loss_func
from solo.losses.wmse import wmse_loss_func

__all__ = [
    "DINOLoss",
    "barlow_loss_func",
    "byol_loss_func",
    "deepclusterv2_loss_func",
    "dino_loss_func",
    "distill_loss_func",
    "exemplar_loss_func",
    "ibot_patch_loss_func",
    "koleo_loss_func",
    "lejepa_loss_func",
    "mae_loss_func",
    "mocov2plus_loss_func",
    "mocov3_loss_func",
    "multilabel_loss_func",
    "nnclr_loss_func",
    "npid_loss_func",
    "npid_softmax_loss_func",
    "ressl_loss_func",
    "sigreg",
    "simclr_loss_func",
    "simsiam_loss_func",
    "swav_loss_func",
    "vibcreg_loss_func",
    "vicreg_loss_func",
    "wmse_loss_func",
]
