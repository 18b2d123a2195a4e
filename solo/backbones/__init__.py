# SPDX-License-Identifier: MIT
"""Encoders by name. Importing this costs nothing: a family is imported when one of it is built."""

from solo.backbones.build import build_encoder, features_dim, get_builder, input_channels
from solo.backbones.classic import alexnet, vgg19
from solo.backbones.convnext import convnext_base, convnext_large, convnext_small, convnext_tiny
from solo.backbones.poolformer import (
    poolformer_m36,
    poolformer_m48,
    poolformer_s12,
    poolformer_s24,
    poolformer_s36,
)
from solo.backbones.registry import BACKBONES, register_backbone
from solo.backbones.resnet import resnet18, resnet50
from solo.backbones.swin import swin_base, swin_large, swin_small, swin_tiny
from solo.backbones.vit import vit_base, vit_large, vit_small, vit_tiny
from solo.backbones.wide_resnet import wide_resnet28w2, wide_resnet28w8

__all__ = [
    "BACKBONES",
    "alexnet",
    "build_encoder",
    "convnext_base",
    "convnext_large",
    "convnext_small",
    "convnext_tiny",
    "features_dim",
    "get_builder",
    "input_channels",
    "poolformer_m36",
    "poolformer_m48",
    "poolformer_s12",
    "poolformer_s24",
    "poolformer_s36",
    "register_backbone",
    "resnet18",
    "resnet50",
    "swin_base",
    "swin_large",
    "swin_small",
    "swin_tiny",
    "vgg19",
    "vit_base",
    "vit_large",
    "vit_small",
    "vit_tiny",
    "wide_resnet28w2",
    "wide_resnet28w8",
]
