#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, timm 1.0.31.
# Guess:     FlopCounterMode counts what a network does, so a ViT has the same FLOPs on the CPU and
#            on a GPU, with fused attention or without.
# Behaviour: on the CPU scaled_dot_product_attention runs in a kernel of its own that the counter
#            has no formula for: it counts zero, without a word. The count of a ViT lacks all of
#            softmax(QK)V. Under sdpa_kernel(SDPBackend.MATH), or with timm's fused_attn=False, it
#            is complete.
# Seen:      197 tokens, 3 heads of 64: 0 instead of 29,805,312. A ViT-Ti at 64x64: 185,204,736
#            fused, 187,868,160 unfused.
exec "$(dirname "$0")/run_with" torch==2.14.1 torchvision==0.29.1 timm==1.0.31 <<'PYTHON'
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from expect import expect

print(f"torch {torch.__version__}, timm {timm.__version__}")


@torch.no_grad()
def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


heads, tokens, width = 3, 197, 64
q = k = v = torch.randn(1, heads, tokens, width)
truth = 2 * 2 * heads * tokens * tokens * width  # QK and the product with V, two per multiply-add
counted = flops(lambda: scaled_dot_product_attention(q, k, v))
expect(f"attention: {counted:,} counted of {truth:,}", counted == 0)
with sdpa_kernel(SDPBackend.MATH):
    counted = flops(lambda: scaled_dot_product_attention(q, k, v))
expect(f"as plain products: {counted:,}", counted == truth)

vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
totals = []
for fused in (True, False):
    for block in vit.blocks:
        block.attn.fused_attn = fused
    totals.append(flops(lambda: vit(torch.randn(1, 3, 64, 64))))
missing = 12 * 2 * 2 * heads * 17 * 17 * width
expect(
    f"ViT-Ti at 64x64: {totals[0]:,} fused, {totals[1]:,} unfused", totals[1] - totals[0] == missing
)
PYTHON
