#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  timm 1.0.31, torch 2.14.1.
# Guess:     create_model(name, global_pool="avg") and reset_classifier(0, global_pool="avg") on a
#            ViT made with its default pooling are the same network.
# Behaviour: asked for at creation, mean pooling moves the last LayerNorm behind the pool and calls
#            it fc_norm; asked for afterwards, the LayerNorm stays before the pool and is called
#            norm. The features differ, weights of the one do not load into the other, and features
#            taken with forward_features() are normalised in one and raw in the other.
# Seen:      with equal weights the features have lengths of 13.86 and 4.13 (cosine 0.999);
#            forward_features() has a standard deviation of 0.64 and of 1.00.
exec "$(dirname "$0")/run_with" timm==1.0.31 torch==2.14.1 torchvision==0.29.1 <<'PYTHON'
import timm
import torch
from torch.nn import functional

from expect import expect

print(f"timm {timm.__version__}")
torch.manual_seed(0)
shape = {"img_size": 32, "patch_size": 8, "num_classes": 0}
created = timm.create_model("vit_tiny_patch16_224", global_pool="avg", **shape).eval()
reset = timm.create_model("vit_tiny_patch16_224", **shape).eval()
reset.reset_classifier(0, global_pool="avg")

keys = [
    sorted(set(a.state_dict()) - set(b.state_dict()))
    for a, b in ((created, reset), (reset, created))
]
expect(
    f"keys of one only: {keys}",
    keys == [["fc_norm.bias", "fc_norm.weight"], ["norm.bias", "norm.weight"]],
)
weights = {k.replace("fc_norm", "norm"): v for k, v in created.state_dict().items()}
reset.load_state_dict(weights)
images = torch.randn(4, 3, 32, 32)
with torch.no_grad():
    one, other = created(images), reset(images)
    spread = [m.forward_features(images).std(dim=-1).mean().item() for m in (created, reset)]
cosine = functional.cosine_similarity(one, other).mean().item()
lengths = [x.norm(dim=1).mean().item() for x in (one, other)]
print(f"cosine {cosine:.3f}, lengths {lengths[0]:.2f} and {lengths[1]:.2f}")
expect("the features differ", abs(lengths[0] / lengths[1] - 1) > 0.2)
print(f"spread of forward_features: {spread[0]:.2f} and {spread[1]:.2f}")
expect("forward_features is normalised in one only", abs(spread[1] - 1) < 0.01 < abs(spread[0] - 1))
PYTHON
