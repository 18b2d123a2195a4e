# SPDX-License-Identifier: MIT
"""Tiny ViTs under the methods that came with them."""

import torch

from solo.methods import METHODS
from tests.methods.helpers import tiny_batch, tiny_cfg

HEAD = {"proj_hidden_dim": 8, "proj_output_dim": 6, "num_prototypes": 5}
JEPA = {"pred_embed_dim": 8, "pred_depth": 1, "pred_num_heads": 2, "min_context": 1}
LEJEPA = {"proj_hidden_dim": 8, "proj_output_dim": 4, "num_directions": 8}
PARTS = {"ijepa": JEPA, "lejepa": LEJEPA}
VIT = {
    "img_size": 16,
    "patch_size": 4,
    "depth": 2,
    "embed_dim": 12,
    "num_heads": 3,
    "dynamic_img_size": True,
}
MEAN = {"class_token": False, "global_pool": "avg", "fc_norm": False}


def build(name, small=0, vit=None, **changes):
    kwargs = {**PARTS.get(name, HEAD), **changes.pop("kwargs", {})}
    cfg = tiny_cfg(name, kwargs, data__num_small_crops=small, **changes)
    vit = {**VIT, **(MEAN if name == "ijepa" else {}), **(vit or {})}
    cfg.backbone = {"name": "vit_tiny", "kwargs": vit}
    torch.manual_seed(0)
    model = METHODS[name](cfg)
    for _, momentum in getattr(model, "momentum_pairs", ()):  # so that the two encoders differ
        for p in momentum.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    return model


def batch_of(small=0, n=4):
    return tiny_batch(n=n, small=small, size=16)


def loaders(batch, n=4):
    items = [
        (int(batch[0][i]), [v[i] for v in batch[1]], batch[2][i]) for i in range(len(batch[0]))
    ]
    val = [(batch[1][0][i], batch[2][i]) for i in range(len(batch[0]))]
    return (
        torch.utils.data.DataLoader(items, batch_size=n),
        torch.utils.data.DataLoader(val, batch_size=n),
    )
