# SPDX-License-Identifier: MIT
"""The smallest configuration of each method of the zoo, and what it must expose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from solo.methods import METHODS
from tests.methods.helpers import tiny_cfg

FEATS, OUT = 32, 8  # width-4 ResNet-18; projector output


def layers(prefix: str, *indexes: int, norms: tuple[int, ...] = ()) -> set[str]:
    """State-dict keys of a Sequential: linear layers with bias, batch norms with affine."""
    stats = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{prefix}.{i}.{name}" for i in indexes for name in ("weight", "bias")}
    return keys | {f"{prefix}.{i}.{name}" for i in norms for name in stats}


@dataclass
class Case:
    """One method.

    Attributes:
        kwargs: its method_kwargs.
        keys: state-dict keys beyond encoder and classifier, before training starts.
        forward: what `forward` adds to logits and feats, with shapes.
        trained: modules that must receive a gradient.
        metrics: names it logs in training.
        backbone: in place of the tiny ResNet.
        large: number of large crops.
    """

    kwargs: dict[str, Any]
    keys: set[str]
    forward: dict[str, tuple[int, ...]]
    trained: tuple[str, ...]
    metrics: tuple[str, ...]
    backbone: dict[str, Any] | None = None
    large: int = 2

    def cfg(self, method: str, **changes: Any):
        kwargs = {**self.kwargs, **changes.pop("method_kwargs", {})}
        cfg = tiny_cfg(method, kwargs, **{"data__num_large_crops": self.large, **changes})
        if self.backbone is not None:
            cfg.backbone = self.backbone
        return cfg


Z = {"z": (4, OUT)}
ZP = {"z": (4, OUT), "p": (4, OUT)}
PROJ = {"proj_hidden_dim": 16, "proj_output_dim": OUT}
QUEUE = {"queue_size": 8}
BYOL_KEYS = (
    layers("projector", 0, 3, norms=(1,))
    | layers("momentum_projector", 0, 3, norms=(1,))
    | layers("predictor", 0, 3, norms=(1,))
)
NN_PROJECTOR = layers("projector", 0, 3, 6, norms=(1, 4, 7))
NN_QUEUE = {"queue", "queue_y", "queue_ptr"}
PREDICTOR = layers("predictor", 0, 3, norms=(1,))
NN_METRICS = ("train_neg_cos_sim", "train_z_std", "train_nn_acc")
SIMSIAM_KEYS = (
    {"projector.0.weight", "projector.3.weight", "projector.6.weight", "projector.6.bias"}
    | layers("projector", norms=(1, 4))
    | {f"projector.7.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    | {"predictor.0.weight", "predictor.3.weight", "predictor.3.bias"}
    | layers("predictor", norms=(1,))
)
TRANSFORMER = {
    f"transformer_encoder.layers.{i}.{name}"
    for i in range(3)
    for name in (
        *("self_attn.in_proj_weight", "self_attn.in_proj_bias"),
        *(f"{m}.{p}" for p in ("weight", "bias") for m in ("self_attn.out_proj", "linear1")),
        *(f"{m}.{p}" for p in ("weight", "bias") for m in ("linear2", "norm1", "norm2")),
    )
}
BLOCK = tuple(
    f"{m}.{p}"
    for p in ("weight", "bias")
    for m in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
)
HEAD = {f"mlp.{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")}
HEAD |= {"last_layer.weight_g", "last_layer.weight_v"}

TINY_VIT = {"name": "vit_tiny", "kwargs": {"patch_size": 2, "img_size": 8, "depth": 2}}
MEAN_OF_PATCHES = {"class_token": False, "global_pool": "avg", "fc_norm": False}

CASES = {
    "supcon": Case(
        kwargs={**PROJ, "temperature": 0.2},
        keys=layers("projector", 0, 2),
        forward=Z,
        trained=("projector",),
        metrics=("train_nce_loss",),
    ),
    "nnclr": Case(
        kwargs={**PROJ, **QUEUE, "pred_hidden_dim": 16, "temperature": 0.2},
        keys=NN_PROJECTOR | PREDICTOR | NN_QUEUE,
        forward=ZP,
        trained=("projector", "predictor"),
        metrics=("train_nnclr_loss", "train_nn_acc"),
    ),
    "nnbyol": Case(
        kwargs={**PROJ, **QUEUE, "pred_hidden_dim": 16},
        keys=BYOL_KEYS | NN_QUEUE,
        forward=ZP,
        trained=("projector", "predictor"),
        metrics=NN_METRICS,
    ),
    "nnsiam": Case(
        kwargs={**PROJ, **QUEUE, "pred_hidden_dim": 16},
        keys=SIMSIAM_KEYS | NN_QUEUE,
        forward=ZP,
        trained=("projector", "predictor"),
        metrics=NN_METRICS,
    ),
    "ressl": Case(
        kwargs={**PROJ, **QUEUE, "temperature_q": 0.1, "temperature_k": 0.04},
        keys=layers("projector", 0, 2)
        | layers("momentum_projector", 0, 2)
        | {"queue", "queue_ptr"},
        forward=Z,
        trained=("projector",),
        metrics=("train_ressl_loss",),
    ),
    "swav": Case(
        kwargs={
            **PROJ,
            **QUEUE,
            "temperature": 0.1,
            "num_prototypes": 5,
            "freeze_prototypes_epochs": 1,
            "epoch_queue_starts": 1,
        },
        keys=layers("projector", 0, 3, norms=(1,)) | {"prototypes.weight_g", "prototypes.weight_v"},
        forward={"z": (4, OUT), "p": (4, 5)},
        trained=("projector", "prototypes"),
        metrics=("train_swav_loss",),
    ),
    "deepclusterv2": Case(
        kwargs={**PROJ, "num_prototypes": [5, 5, 5], "kmeans_iters": 3},
        keys=layers("projector", 0, 3, norms=(1,)) | {f"prototypes.{i}.weight" for i in range(3)},
        forward={"z": (4, OUT), "p": (3, 4, 5)},
        trained=("projector",),
        metrics=("train_deepcluster_loss",),
    ),
    "dino": Case(
        kwargs={**PROJ, "num_prototypes": 6, "freeze_last_layer": 1, "clip_grad": 0.5},
        keys={"dino_loss_func.center"}
        | {f"{head}.{key}" for head in ("head", "momentum_head") for key in HEAD},
        forward={"z": (4, 6)},
        trained=("head",),
        metrics=("dino_loss",),
    ),
    "vibcreg": Case(
        kwargs={**PROJ, "iternorm": True},
        keys=layers("projector", 0, 3, 6, norms=(1, 4))
        | {f"projector.7.{name}" for name in ("weight", "bias", "running_mean", "running_wm")},
        forward=Z,
        trained=("projector",),
        metrics=("train_vibcreg_loss",),
    ),
    "wmse": Case(
        kwargs={**PROJ, "whitening_size": 4, "whitening_iters": 2, "whitening_eps": 0.1},
        keys=layers("projector", 0, 3, norms=(1,)),
        forward=Z,
        trained=("projector",),
        metrics=("train_wmse_loss",),
    ),
    "ibot": Case(
        kwargs={**PROJ, "num_prototypes": 6, "freeze_last_layer": 1},
        keys={"dino_loss_func.center", "patch_loss_func.center", "mask_token.token"}
        | {f"{head}.{key}" for head in ("head", "momentum_head") for key in HEAD},
        forward={"z": (4, 6)},
        trained=("head", "mask_token"),
        metrics=("dino_loss", "train_patch_loss"),
        backbone=TINY_VIT,
    ),
    "dinov2": Case(
        kwargs={**PROJ, "num_prototypes": 6, "freeze_last_layer": 1},
        keys={"dino_loss_func.center", "patch_loss_func.center", "mask_token.token"}
        | {
            f"{momentum}{head}.{key}"
            for momentum in ("", "momentum_")
            for head in ("head", "patch_head")
            for key in HEAD
        },
        forward={"z": (4, 6)},
        trained=("head", "patch_head", "mask_token"),
        metrics=("dino_loss", "train_patch_loss", "train_koleo_loss"),
        backbone=TINY_VIT,
    ),
    "ijepa": Case(
        kwargs={"pred_embed_dim": 16, "pred_depth": 2, "pred_num_heads": 4, "min_context": 1},
        keys={"predictor.mask_token"}
        | {f"predictor.blocks.{i}.{name}" for i in range(2) for name in BLOCK}
        | {f"predictor.{m}.{p}" for m in ("embed", "norm", "out") for p in ("weight", "bias")},
        forward={},
        trained=("predictor",),
        metrics=("train_jepa_loss",),
        backbone={"name": "vit_tiny", "kwargs": {**TINY_VIT["kwargs"], **MEAN_OF_PATCHES}},
        large=1,
    ),
    "lejepa": Case(
        kwargs={**PROJ, "num_directions": 16},
        keys=layers("projector", 0, 3, 6, norms=(1, 4)),
        forward=Z,
        trained=("projector",),
        metrics=("train_lejepa_loss",),
        large=3,
    ),
    "mae": Case(
        kwargs={
            "decoder_embed_dim": 16,
            "decoder_depth": 2,
            "decoder_num_heads": 4,
            "mask_ratio": 0.5,
            "norm_pix_loss": True,
        },
        keys={"decoder.mask_token", "decoder.decoder_pos_embed"}
        | {f"decoder.decoder_blocks.{i}.{name}" for i in range(2) for name in BLOCK}
        | {
            f"decoder.decoder_{m}.{p}"
            for m in ("embed", "norm", "pred")
            for p in ("weight", "bias")
        },
        forward={"mask": (4, 4), "pred": (4, 4, 48)},
        trained=("decoder",),
        metrics=("train_reconstruction_loss",),
        backbone={"name": "vit_tiny", "kwargs": {"patch_size": 4, "img_size": 8, "depth": 2}},
        large=1,
    ),
    "all4one": Case(
        kwargs={**PROJ, **QUEUE, "pred_hidden_dim": 16, "temperature": 0.2},
        keys=NN_PROJECTOR
        | {f"momentum_{key}" for key in NN_PROJECTOR}
        | PREDICTOR
        | {key.replace("predictor", "predictor2") for key in PREDICTOR}
        | TRANSFORMER
        | NN_QUEUE
        | {"queue_index", "pos_enc.penc.penc.inv_freq"},
        forward=ZP,
        trained=("projector", "predictor", "predictor2", "transformer_encoder"),
        metrics=(
            *("train_comb_loss", "train_nnclr_loss", "train_att_nnclr_loss"),
            *("train_feature_loss", "train_nn_acc", "train_z_std"),
        ),
    ),
}


def build(method: str, **changes: Any):
    """The method's tiny module."""
    return METHODS[method](CASES[method].cfg(method, **changes))


def cross_entropy_rows(logits: torch.Tensor, columns: range) -> torch.Tensor:
    """-log softmax at one column per row, averaged: InfoNCE, written out."""
    rows = [-(row[c] - row.exp().sum().log()) for row, c in zip(logits, columns, strict=True)]
    return torch.stack(rows).mean()


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Matrix of cosine similarities of the rows."""
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
