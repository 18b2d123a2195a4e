#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  timm 1.0.31, torch 2.14.1.
# Guess:     timm's layer-wise learning-rate decay gives block i of a ViT one rate, BEiT's and
#            MAE's: decay^(depth - i), counted from 0 for the first; and every other model one rate
#            per block.
# Behaviour: the top layer is the last one that the model has. With a head block 11 of 12 gets
#            decay^1 (the final norm too, which BEiT and MAE leave at 1); the same encoder with
#            num_classes=0 and the classifier beside it gets decay^0, all rates are 1/decay as
#            large, silently. And models without a group_matcher are cut every twelve parameters:
#            parts of one PoolFormer block get different rates.
# Seen:      decay 0.5, ViT: blocks 0, 11 and norm: 2.4e-4, 0.5, 0.5 with the head, 4.9e-4, 1, 1
#            without. PoolFormer stages.2.blocks.0: norm1 0.0039, norm2 0.0078.
exec "$(dirname "$0")/run_with" timm==1.0.31 torch==2.14.1 torchvision==0.29.1 <<'PYTHON'
import timm
from timm.optim import param_groups_layer_decay

from expect import expect

print(f"timm {timm.__version__}")


def rates(name, classes):
    model = timm.create_model(name, num_classes=classes)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


keys = ("blocks.0.norm1.weight", "blocks.11.norm1.weight", "norm.weight")
with_head, without = rates("vit_tiny_patch16_224", 10), rates("vit_tiny_patch16_224", 0)
expect(
    f"ViT with a head: {[with_head[k] for k in keys]}",
    [with_head[k] for k in keys] == [0.5**12, 0.5, 0.5],
)
expect(
    f"ViT without: {[without[k] for k in keys]}", [without[k] for k in keys] == [0.5**11, 1.0, 1.0]
)
encoder = [k for k in without if k in with_head]
expect(
    f"all {len(encoder)} parameters of the encoder differ by 1/decay",
    all(without[k] == 2 * with_head[k] for k in encoder),
)
block = {k: v for k, v in rates("poolformer_s12", 10).items() if k.startswith("stages.2.blocks.0.")}
print(block)
expect(f"one PoolFormer block has {len(set(block.values()))} rates", len(set(block.values())) > 1)
PYTHON
