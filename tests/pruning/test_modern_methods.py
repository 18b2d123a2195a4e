# SPDX-License-Identifier: MIT
"""Methods that learn from patches and local crops, under every sparse method: runs of 4 steps."""

import pytest
import torch
from torch.utils.data import DataLoader

from solo.methods import METHODS
from solo.methods.base import BaseMomentumMethod
from sparse_ext import sparsify
from sparse_ext.config.sections import METHODS as SPARSE
from sparse_ext.masks.encoder import Encoder
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_trainer
from tests.pruning.methods.test_all import refusal, section_of

pytestmark = pytest.mark.unit

HEAD = {"proj_hidden_dim": 8, "proj_output_dim": 6}
VIT = {"img_size": 16, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2}
VIT |= {"dynamic_img_size": True}
MEAN = {"class_token": False, "global_pool": "avg", "fc_norm": False}
KWARGS = {
    "lejepa": {**HEAD, "num_directions": 8},
    "dino": {**HEAD, "num_prototypes": 5, "local_crops": True},
    "ibot": {**HEAD, "num_prototypes": 5},
    "dinov2": {**HEAD, "num_prototypes": 5},
    "ijepa": {"pred_embed_dim": 8, "pred_depth": 1, "pred_num_heads": 2, "min_context": 1},
}
FAST = {("dinov2", "synccp", g) for g in ("element", "2:4", "block8")}
FAST |= {(name, "synccp", "element") for name in KWARGS}
FAST |= {
    ("lejepa", "sdclr", "element"),
    ("lejepa", "grasp", "element"),
    ("ijepa", "granet", "2:4"),
    ("ibot", "rigl", "element"),
}
CASES = [
    pytest.param(name, sparse, unit, marks=() if (name, sparse, unit) in FAST else pytest.mark.slow)
    for name in KWARGS
    for sparse in sorted(SPARSE)
    for unit in ("element", "2:4", "block8")
    if not refusal(sparse, unit, issubclass(METHODS[name], BaseMomentumMethod))
]


@pytest.mark.parametrize(("name", "sparse", "unit"), CASES)
def test_runs_sparse(name, sparse, unit):
    large, small = (1, 0) if name == "ijepa" else (2, 2)
    crops = {"data__num_large_crops": large, "data__num_small_crops": small}
    cfg = tiny_cfg(name, KWARGS[name], **crops, max_epochs=2)
    kwargs = {**VIT, **MEAN} if name == "ijepa" else VIT
    cfg.backbone = {"name": "vit_tiny", "kwargs": kwargs}
    torch.manual_seed(0)
    model = METHODS[name](cfg)
    sparsify(model, section_of(sparse, unit))
    indexes, views, targets = tiny_batch(n=8, large=large, small=small, size=16)
    items = [(int(i), [v[i] for v in views], targets[i]) for i in indexes]
    trainer = tiny_trainer(max_epochs=2, limit_val_batches=0)
    trainer.fit(model, DataLoader(items, batch_size=4))
    assert trainer.global_step == 4
    masks = Encoder(getattr(model, "momentum_backbone" if sparse == "mcp" else "backbone")).masks
    assert {"blocks.0.attn.qkv", "blocks.1.mlp.fc2"} <= set(masks)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert kept < sum(mask.numel() for mask in masks.values())
    for value in model.state_dict().values():
        assert not value.is_floating_point() or value.isfinite().all()
