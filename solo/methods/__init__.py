# SPDX-License-Identifier: MIT
"""The methods by name: `METHODS["byol"]`, or `from solo.methods import BYOL`."""

from importlib import import_module
from importlib.util import find_spec

_CLASSES = {
    "base": "BaseMethod",
    "linear": "LinearModel",
    "all4one": "All4One",
    "barlow_twins": "BarlowTwins",
    "byol": "BYOL",
    "deepclusterv2": "DeepClusterV2",
    "dino": "DINO",
    "mae": "MAE",
    "mocov2plus": "MoCoV2Plus",
    "mocov3": "MoCoV3",
    "nnbyol": "NNBYOL",
    "nnclr": "NNCLR",
    "nnsiam": "NNSiam",
    "ressl": "ReSSL",
    "simclr": "SimCLR",
    "simsiam": "SimSiam",
    "supcon": "SupCon",
    "swav": "SwAV",
    "vibcreg": "VIbCReg",
    "vicreg": "VICReg",
    "wmse": "WMSE",
}
METHODS = {
    name: getattr(import_module(f"solo.methods.{name}"), class_name)
    for name, class_name in _CLASSES.items()
    if find_spec(f"solo.methods.{name}")
}
globals().update({method.__name__: method for method in METHODS.values()})

__all__ = ["METHODS", *(method.__name__ for method in METHODS.values())]
