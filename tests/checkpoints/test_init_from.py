# SPDX-License-Identifier: MIT
"""Encoders out of files as other projects write them; nothing is silently random."""

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from timm.models import vision_transformer
from torch import nn
from torchvision.models import VisionTransformer

from solo.backbones import build_encoder
from solo.checkpoints.init_from import init_encoder, init_method
from solo.checkpoints.loading import load_encoder
from solo.checkpoints.sources import find_encoder
from solo.errors import CheckpointError
from solo.methods import METHODS
from tests.methods.helpers import tiny_cfg

pytestmark = pytest.mark.unit
BYOL = {"proj_hidden_dim": 8, "proj_output_dim": 8, "pred_hidden_dim": 8}


def resnet(seed=0, width=4, dataset="custom", name="resnet18"):
    torch.manual_seed(seed)
    cfg = {"method": "simclr", "backbone": {"name": name, "kwargs": {"width": width}}}
    return build_encoder(OmegaConf.create({**cfg, "data": {"dataset": dataset}}))


def vit(seed=0, img_size=32, patch_size=8, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=img_size,
        patch_size=patch_size,
        depth=2,
        embed_dim=24,
        num_heads=3,
        num_classes=0,
        **kwargs,
    )


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def lightly(net):
    """Children in a Sequential, without the classifier, as lightly's examples have it."""
    return nn.Sequential(*list(net.children())[:-1]).state_dict()


def layout(kind, state, other, net):
    """A file as `kind` writes it: `state` is the encoder in question, `other` its twin."""
    head = torch.zeros(2, 2)
    return {
        "plain": state,
        "torchvision": {**state, "fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)},
        "ddp": {"state_dict": {**prefixed(state, "module."), "module.fc.bias": head}},
        "moco": {
            "epoch": 3,
            "state_dict": {
                **prefixed(other, "module.encoder_k."),
                **prefixed(state, "module.encoder_q."),
                "module.queue": head,
                "module.encoder_q.fc.0.weight": head,
            },
        },
        "moco v3": {
            "state_dict": {
                **prefixed(other, "module.momentum_encoder."),
                **prefixed(state, "module.base_encoder."),
            }
        },
        "dino": {
            "student": prefixed(other, "module.backbone."),
            "teacher": {**prefixed(state, "backbone."), "head.mlp.0.weight": head},
            "epoch": 1,
        },
        "barlow": {"model": {**prefixed(state, "module.backbone."), "projector.0.weight": head}},
        "lightly": {
            "state_dict": {**prefixed(lightly(net), "backbone."), "projection_head.0.weight": head}
        },
        "compiled": {"state_dict": prefixed(state, "backbone._orig_mod.")},
        "ours": {
            "state_dict": {
                **prefixed(other, "momentum_backbone."),
                **prefixed(state, "backbone."),
                "projector.0.weight": head,
            }
        },
    }[kind]


LAYOUTS = (
    *("plain", "torchvision", "ddp", "moco", "moco v3", "dino", "barlow", "lightly", "compiled"),
    "ours",
)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_encoder_is_found(kind, tmp_path):
    trained, other = resnet(1), resnet(2)
    file = tmp_path / "weights.pth"
    torch.save(layout(kind, trained.state_dict(), other.state_dict(), trained), file)
    fresh = resnet(3)
    report = init_encoder(fresh, str(file))
    for key, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    assert report.matched == len(trained.state_dict())
    again = load_encoder(resnet(3), file).backbone  # the evaluation programs, too
    assert torch.equal(again.layer4[1].conv2.weight, trained.layer4[1].conv2.weight)


def test_the_momentum_encoder_is_the_other_one():
    trained, other = resnet(1), resnet(2)
    content = layout("moco", trained.state_dict(), other.state_dict(), trained)
    found = find_encoder(content, resnet(3), "momentum")
    assert torch.equal(found.state["conv1.weight"], other.conv1.weight)
    assert found.place == "state_dict / encoder_k."


def layout_of_vit(kind, state, other):
    """A file of a vision transformer as `kind` writes it."""
    head = torch.zeros(2, 2)
    return {
        "timm": {**state, "head.weight": head, "head.bias": head[0]},
        "mae": {
            "model": {
                **state,
                "mask_token": torch.zeros(1, 1, 8),
                "decoder_embed.weight": head,
                "decoder_pos_embed": torch.zeros(1, 17, 8),
                "decoder_blocks.0.norm1.weight": head[0],
                "decoder_norm.weight": head[0],
            },
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 7,
        },
        "dino": {
            "student": {
                **prefixed(other, "module.backbone."),
                "module.backbone.masked_embed": head[:1],  # as iBOT writes it: one more than below
                "module.head.mlp.0.weight": head,
            },
            "teacher": {**prefixed(state, "backbone."), "head.mlp.0.weight": head},
            "optimizer": {"state": {0: {"exp_avg": head}}},
        },
        "moco v3": {
            "state_dict": {
                **prefixed(other, "module.momentum_encoder."),
                **prefixed(state, "module.base_encoder."),
                "module.base_encoder.head.0.weight": head,
                "module.predictor.0.weight": head,
            }
        },
        "dinov2": {**state, "mask_token": torch.zeros(1, 24)},
        "lightly": {
            "state_dict": {
                **prefixed(other, "student_backbone.vit."),
                **prefixed(state, "teacher_backbone.vit."),
            }
        },
    }[kind]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", ["timm", "mae", "dino", "moco v3", "dinov2", "lightly"])
def test_a_vision_transformer_is_found(kind, suffix, tmp_path):
    trained, other, fresh = vit(1), vit(2), vit(3)
    content = layout_of_vit(kind, trained.state_dict(), other.state_dict())
    file = str(tmp_path / f"weights.{suffix}")
    if suffix == "pth":
        torch.save(content, file)
    elif all(isinstance(value, torch.Tensor) for value in content.values()):
        save_file({key: value.clone() for key, value in content.items()}, file)
    else:
        pytest.skip("safetensors holds no dictionaries of dictionaries")
    report = init_encoder(fresh, file)
    for key, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key
    assert not report.random


def test_dinov2_with_registers(tmp_path):
    """Against timm's own conversion of the same file."""
    options = {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5}
    source, target, other = (vit(seed, **options) for seed in (1, 2, 3))
    file = {key: value for key, value in source.state_dict().items() if key != "reg_token"}
    file["pos_embed"] = torch.randn(1, 17, 24)
    file |= {"register_tokens": torch.randn(1, 4, 24), "mask_token": torch.zeros(1, 24)}
    torch.save(file, tmp_path / "dinov2.pth")
    init_encoder(target, str(tmp_path / "dinov2.pth"))
    other.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(file), other))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(target.eval()(x), other.eval()(x))
    with pytest.raises(CheckpointError, match="which has no register_tokens"):
        init_encoder(vit(init_values=1e-5), str(tmp_path / "dinov2.pth"))


def test_torchvisions_vision_transformer(tmp_path):
    source = VisionTransformer(32, 8, 2, 3, 24, 96, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    target = vit()
    init_encoder(target, str(tmp_path / "vit.pth"))
    source.heads = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(source.eval()(x), target.eval()(x), atol=1e-4)


def test_embeddings_are_resized(tmp_path):
    small, large = vit(img_size=32), vit(img_size=48, seed=1)
    torch.save(small.state_dict(), tmp_path / "vit.pth")
    report = init_encoder(large, str(tmp_path / "vit.pth"))
    assert report.resized == ("pos_embed from (1, 17, 24) to (1, 37, 24)",)
    expected = nn.functional.interpolate(
        small.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2),
        size=(6, 6),
        mode="bicubic",
        antialias=True,
    )
    got = large.pos_embed[:, 1:].reshape(1, 6, 6, 24).permute(0, 3, 1, 2)
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(large.pos_embed[:, :1], small.pos_embed[:, :1])
    coarse = vit(img_size=64, patch_size=16, seed=2)
    report = init_encoder(coarse, str(tmp_path / "vit.pth"))
    assert any("patch_embed.proj.weight from (24, 3, 8, 8) to" in text for text in report.resized)


def test_nothing_is_silently_random(tmp_path):
    file = tmp_path / "weights.pth"
    state = resnet(1).state_dict()
    del state["layer2.0.conv1.weight"]
    torch.save(state, file)
    fresh = resnet(2)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"layer2\.0\.conv1\.weight is not in the file.*init_allow_missing"
    ):
        init_encoder(fresh, str(file))
    assert all(torch.equal(before[key], value) for key, value in fresh.state_dict().items())
    report = init_encoder(fresh, str(file), ["layer2.0.conv1.*"])
    assert report.random == ("layer2.0.conv1.weight",)
    assert "left at random, as init_allow_missing says: layer2.0.conv1.weight" in str(report)
    with pytest.raises(CheckpointError, match=r"no tensor 'layr2.*Did you mean"):
        init_encoder(fresh, str(file), ["layr2.0.conv1.weight"])


def test_another_architecture_is_named(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(resnet(name="resnet18").state_dict(), file)
    with pytest.raises(CheckpointError, match="no tensor of the file has a name of this Vision"):
        init_encoder(vit(), str(file))
    with pytest.raises(CheckpointError, match=r"conv1\.weight is .* 3x3 stem"):
        init_encoder(resnet(dataset="cifar10"), str(file))
    deep = {**resnet(1).state_dict(), "layer1.2.conv1.weight": torch.zeros(4, 4, 3, 3)}
    torch.save(deep, file)
    with pytest.raises(CheckpointError, match=r"larger encoder .* has no layer1\.2\.conv1\.weight"):
        init_encoder(resnet(2), str(file))


def test_timm_without_a_network_says_what_to_fetch():
    with pytest.raises(CheckpointError, match=r"fetch model\.safetensors of https://huggingface"):
        init_encoder(vit(), "timm:vit_small_patch14_dinov2.lvd142m")
    with pytest.raises(CheckpointError, match=r"timm has no model 'vit_smal.*Did you mean"):
        init_encoder(vit(), "timm:vit_smal_patch16_224")


def test_both_encoders_start_equal(tmp_path):
    file = tmp_path / "weights.pth"
    cfg = tiny_cfg("byol", BYOL)
    source = METHODS["byol"](cfg).backbone
    torch.save(source.state_dict(), file)
    torch.manual_seed(7)
    model = METHODS["byol"](cfg)
    init_method(model, str(file))
    for net in (model.backbone, model.momentum_backbone):
        for key, value in source.state_dict().items():
            assert torch.equal(net.state_dict()[key], value)
    assert not any(p.requires_grad for p in model.momentum_backbone.parameters())
