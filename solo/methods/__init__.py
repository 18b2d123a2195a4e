# SPDX-License-Identifier: MIT
"""The methods by name: `METHODS["byol"]`, or `from solo.methods import BYOL`.

`register_method("name", Class)` adds one of your own (a subclass of `BaseMethod`).
"""

from __future__ import annotations

from solo.methods.all4one import All4One
from solo.methods.barlow_twins import BarlowTwins
from solo.methods.base import BaseMethod
from solo.methods.byol import BYOL
from solo.methods.deepclusterv2 import DeepClusterV2
from solo.methods.dino import DINO
from solo.methods.dinov2 import DINOv2
from solo.methods.distill import Distill
from solo.methods.exemplar import Exemplar
from solo.methods.ibot import IBOT
from solo.methods.ijepa import IJEPA
from solo.methods.lejepa import LeJEPA
from solo.methods.linear import LinearModel
from solo.methods.mae import MAE
from solo.methods.mocov2plus import MoCoV2Plus
from solo.methods.mocov3 import MoCoV3
from solo.methods.multilabel import MultiLabel
from solo.methods.nnbyol import NNBYOL
from solo.methods.nnclr import NNCLR
from solo.methods.nnsiam import NNSiam
from solo.methods.npid import NPID
from solo.methods.ressl import ReSSL
from solo.methods.rotnet import RotNet
from solo.methods.s4l import S4L
from solo.methods.simclr import SimCLR
from solo.methods.simsiam import SimSiam
from solo.methods.supcon import SupCon
from solo.methods.supervised import Supervised
from solo.methods.swav import SwAV
from solo.methods.vibcreg import VIbCReg
from solo.methods.vicreg import VICReg
from solo.methods.wmse import WMSE
from solo.registry import Registry

#: every method by the name that `method:` of a configuration takes
METHODS: Registry[type] = Registry(
    "method",
    {
        "base": BaseMethod,
        "linear": LinearModel,
        "all4one": All4One,
        "barlow_twins": BarlowTwins,
        "byol": BYOL,
        "deepclusterv2": DeepClusterV2,
        "dino": DINO,
        "dinov2": DINOv2,
        "distill": Distill,
        "exemplar": Exemplar,
        "ibot": IBOT,
        "ijepa": IJEPA,
        "lejepa": LeJEPA,
        "mae": MAE,
        "mocov2plus": MoCoV2Plus,
        "mocov3": MoCoV3,
        "multilabel": MultiLabel,
        "nnbyol": NNBYOL,
        "nnclr": NNCLR,
        "nnsiam": NNSiam,
        "npid": NPID,
        "ressl": ReSSL,
        "rotnet": RotNet,
        "s4l": S4L,
        "simclr": SimCLR,
        "simsiam": SimSiam,
        "supcon": SupCon,
        "supervised": Supervised,
        "swav": SwAV,
        "vibcreg": VIbCReg,
        "vicreg": VICReg,
        "wmse": WMSE,
    },
)


def register_method(name: str, method: type | str) -> None:
    """Make a self-supervised method known, so that `method: NAME` trains it.

    Args:
        name: what users write.
        method: a subclass of `BaseMethod`, or where it is: `my_package.my_methods:MyMethod`.

    Raises:
        ConfigError: there is another method of that name.
    """
    METHODS.register(name, method)


__all__ = [
    "BYOL",
    "DINO",
    "IBOT",
    "IJEPA",
    "MAE",
    "METHODS",
    "NNBYOL",
    "NNCLR",
    "NPID",
    "S4L",
    "WMSE",
    "All4One",
    "BarlowTwins",
    "BaseMethod",
    "DINOv2",
    "DeepClusterV2",
    "Distill",
    "Exemplar",
    "LeJEPA",
    "LinearModel",
    "MoCoV2Plus",
    "MoCoV3",
    "MultiLabel",
    "NNSiam",
    "ReSSL",
    "RotNet",
    "SimCLR",
    "SimSiam",
    "SupCon",
    "Supervised",
    "SwAV",
    "VICReg",
    "VIbCReg",
    "register_method",
]
