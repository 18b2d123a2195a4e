# SPDX-License-Identifier: MIT
"""Encoding with hidden or chosen patches, against timm's own parts put together by hand."""

import pytest
import torch
from torch import nn

from solo.backbones import resnet18, vit_tiny
from solo.errors import ConfigError
from solo.methods.patch_tokens import MaskToken, encode, grid_of, require_vit

pytestmark = pytest.mark.unit


def vit(**kwargs):
    torch.manual_seed(0)
    return vit_tiny("dino", patch_size=4, img_size=16, depth=2, **kwargs).eval()


@pytest.mark.parametrize("dynamic", [False, True])
def test_tokens_and_features_of_a_plain_pass(dynamic):
    model, x = vit(dynamic_img_size=dynamic), torch.randn(2, 3, 16, 16)
    out = encode(model, x)
    tokens = model.forward_features(x)
    torch.testing.assert_close(out.patches, tokens[:, 1:])
    torch.testing.assert_close(out.feats, model(x))
    torch.testing.assert_close(out.feats, tokens[:, 0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_hidden_patches_are_replaced_before_the_positions(dynamic):
    model, x = vit(dynamic_img_size=dynamic), torch.randn(2, 3, 16, 16)
    token = MaskToken(192)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, 3] = hidden[1, 7] = hidden[1, 8] = True
    out = encode(model, x, hidden, token)
    patches = model.patch_embed(x).reshape(2, 16, 192).clone()
    for image, patch in hidden.nonzero().tolist():
        patches[image, patch] = token.token
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1) + model.pos_embed
    expected = model.norm(model.blocks(tokens))
    torch.testing.assert_close(out.patches, expected[:, 1:])
    # what a hidden patch shows changes nothing, what another shows does
    changed = x.clone()
    changed[0, :, 0:4, 12:16] += 1
    torch.testing.assert_close(encode(model, changed, hidden, token).patches, out.patches)
    changed[0, :, 12:16, 12:16] += 1
    assert not torch.allclose(encode(model, changed, hidden, token).patches[0], out.patches[0])


@pytest.mark.parametrize("prefix", [True, False])
def test_only_the_kept_patches_go_on(prefix):
    pool = {} if prefix else {"class_token": False, "global_pool": "avg", "fc_norm": False}
    model, x = vit(**pool), torch.randn(2, 3, 16, 16)
    kept = torch.tensor([[1, 4, 5], [0, 9, 15]])
    out = encode(model, x, kept=kept)
    tokens = model.patch_embed(x) + model.pos_embed[:, int(prefix) :]
    tokens = torch.stack([tokens[i, kept[i]] for i in range(2)])
    if prefix:
        cls = model.cls_token + model.pos_embed[:, :1]
        tokens = torch.cat([cls.expand(2, -1, -1), tokens], dim=1)
    expected = model.norm(model.blocks(tokens))
    torch.testing.assert_close(out.patches, expected[:, int(prefix) :])
    feats = expected[:, 0] if prefix else expected.mean(1)
    torch.testing.assert_close(out.feats, feats)


def test_no_hook_stays_behind_also_after_an_error():
    model = vit()
    with pytest.raises(AssertionError):
        encode(model, torch.randn(2, 3, 20, 20))
    encode(model, torch.randn(2, 3, 16, 16), kept=torch.tensor([[0], [1]]))
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0
    assert grid_of(model, torch.zeros(1, 3, 16, 24)) == (4, 6)


@pytest.mark.parametrize("encoder", [resnet18("dino"), nn.Linear(2, 2)])
def test_an_encoder_without_patches_is_refused(encoder):
    with pytest.raises(ConfigError, match=r"ibot learns from patch tokens.*vit_small"):
        require_vit(encoder, "ibot", "resnet18")
