# SPDX-License-Identifier: MIT
"""Costs against closed forms, against torch's own counter and against the papers' numbers."""

import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from solo.errors import CheckpointError, ConfigError
from sparse_ext.cost import count, training_ratios
from sparse_ext.cost.__main__ import main
from sparse_ext.masks.masked_layers import mask_module

pytestmark = pytest.mark.unit


def with_density(module, density):
    """`module` masked, the first entries of its weight kept."""
    mask = mask_module(module).mask
    mask.view(-1)[round(density * mask.numel()) :] = False
    module.apply_mask()
    return module


def stem_for_small_images(padding):
    from torchvision.models import resnet18

    model = resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, 1, padding, bias=False)
    model.maxpool = model.fc = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("layer", "image", "macs"),
    [
        (nn.Linear(7, 5), (7,), 35),
        (nn.Linear(7, 5), (4, 7), 4 * 35),
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2), (3, 11, 11), 5 * 5 * 8 * 3 * 9),
        (nn.Conv2d(8, 8, 3, padding=1, groups=4), (8, 6, 6), 36 * 8 * 2 * 9),
        (nn.Conv2d(8, 8, 5, padding=2, groups=8), (8, 6, 6), 36 * 8 * 25),
        (nn.Conv2d(4, 6, 3, dilation=2), (4, 9, 9), 25 * 6 * 4 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 25 * 6 * 4 * 4),
        (nn.Conv1d(4, 6, 3), (4, 9), 7 * 6 * 4 * 3),
    ],
)
def test_macs_of_one_layer_have_a_closed_form(layer, image, macs):
    table = count(nn.Sequential(layer), image)
    assert table.macs_dense == macs
    assert table.flops_dense == 2 * macs
    assert table.other_macs == 0
    assert table.layers[0].weights == layer.weight.numel()


@pytest.mark.parametrize(("padding", "macs"), [(1, 555_417_600), (2, 703_560_448)])
def test_resnet18_for_small_images_as_the_papers_count_it(padding, macs):
    assert count(stem_for_small_images(padding), 32).macs_dense == macs


@pytest.mark.parametrize(
    ("name", "flops"), [("resnet50", 8_178_368_512), ("resnet18", 3_628_146_688)]
)
def test_networks_for_large_images_as_the_papers_count_them(name, flops):
    import torchvision

    assert count(getattr(torchvision.models, name)(), 224).flops_dense == flops


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_whole_networks_equal_the_counter_of_torch(name):
    import torchvision

    model = getattr(torchvision.models, name)(num_classes=10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 64))
    table = count(model, 64)
    assert table.flops_dense == counter.get_total_flops()
    assert table.other_macs == 0


def test_products_of_attention_are_counted_without_weights():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    table = count(layer, (5, 8))
    seen = {x.name: x.macs_dense for x in table.layers}
    tokens, width = 5, 8
    assert seen["linear1"] == seen["linear2"] == tokens * width * 16
    projections, products = 4 * tokens * width * width, 2 * tokens * tokens * width
    assert table.other_macs == projections + products


def test_a_layer_that_is_used_twice_costs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    table = count(Twice(), (4,))
    assert (table.macs_dense, table.layers[0].weights) == (32, 16)


def test_effective_macs_follow_the_masks_layer_by_layer():
    large_map = with_density(nn.Conv2d(4, 8, 3, padding=1), 0.25)
    small_map = with_density(nn.Conv2d(8, 8, 1, stride=4), 0.5)
    stem = nn.Conv2d(3, 4, 1)
    table = count(nn.Sequential(stem, large_map, small_map), (3, 8, 8))
    stem_macs, large, small = 64 * 12, 64 * 4 * 8 * 9, 4 * 64
    assert table.macs_dense == stem_macs + large + small
    assert table.macs_effective == stem_macs + large / 4 + small / 2
    assert table.prunable.macs_effective == large / 4 + small / 2
    kept = 288 // 4 + 64 // 2
    assert (table.prunable.parameters, table.prunable.parameters_kept) == (288 + 64, kept)
    assert table.sparsity == pytest.approx((352 - kept) / table.parameters)
    assert table.parameters == 12 + 4 + 288 + 8 + 64 + 8  # with biases
    assert table.ratio_at({"1": 0.25}) == pytest.approx(table.mac_ratio)
    assert table.ratio_at({"0": 1.0, "1": 1.0, "2": 1.0}) == 1
    with pytest.raises(ConfigError, match="no layer 'x'"):
        table.ratio_at({"x": 1.0})


def test_zeros_count_where_there_is_no_mask_and_masks_where_there_is_one():
    model = nn.Sequential(nn.Linear(4, 4), mask_module(nn.Linear(4, 4)))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[1].weight[0] = 0  # kept, and zero by chance: a regrown weight starts so
    assert [x.kept for x in count(model, (4,)).layers] == [12, 16]


def test_prunable_set_of_a_dense_encoder_leaves_stem_and_classifier_out():
    from torchvision.models import resnet18

    table = count(resnet18(), 64)
    dense = [x.name for x in table.layers if not x.prunable]
    assert dense == ["conv1", "fc"]
    # 11,689,512 parameters without 9,408 of the stem, 513,000 of fc and 9,600 of the norms
    assert table.prunable.parameters == 11_689_512 - 9_408 - 513_000 - 9_600


def test_counting_leaves_the_model_as_it_was():
    model = stem_for_small_images(2)
    model.layer1.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count(model, 32)
    assert model.training
    assert not model.layer1[0].bn1.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.conv1._forward_hooks


def test_an_image_that_does_not_fit_is_a_named_error():
    with pytest.raises(ConfigError, match=r"does not take an image of shape \(4, 8, 8\)"):
        count(stem_for_small_images(1), (4, 8, 8))


# ---- training ----


def test_conventions_at_constant_cost():
    ratios = training_ratios(0.33, 0.68)
    assert ratios["A"] == pytest.approx(0.4175)
    assert ratios["B"] == pytest.approx((0.66 + 1 + 0.68) / 4)
    assert ratios["C"] == pytest.approx(0.505)
    shared = training_ratios(0.4)
    assert (shared["A"], shared["B"]) == pytest.approx((0.4, 0.6))
    assert set(training_ratios(1.0, 1.0).values()) == set(training_ratios(1.0).values()) == {1.0}


# ---- command ----


def a_run(folder, **sections):
    """A checkpoint with its args.json, of a ResNet-18 of width 8."""
    from omegaconf import OmegaConf

    from solo.backbones import build_encoder
    from sparse_ext.extension import register

    register()
    args = {
        "method": "mocov2plus",
        "backbone": {"name": "resnet18", "kwargs": {"width": 8}},
        "data": {"dataset": "digits"},
        **sections,
    }
    backbone = build_encoder(OmegaConf.create(args))
    for name, module in backbone.named_modules():
        if getattr(module, "mask", None) is not None and name.startswith("layer4"):
            module.mask.view(-1)[::2] = False
            module.apply_mask()
    (folder / "args.json").write_text(json.dumps(args))
    state = {f"backbone.{k}": v for k, v in backbone.state_dict().items()}
    torch.save({"state_dict": state}, folder / "run.ckpt")
    return folder / "run.ckpt"


def test_command_prints_what_a_sparse_checkpoint_costs(tmp_path, capsys):
    path = a_run(tmp_path, sparse={"name": "synccp"})
    assert main([str(path)]) == 0
    text = capsys.readouterr().out
    assert "online encoder, one image of 3x32x32" in text
    assert "dense by rule" in text.split("conv1")[1].splitlines()[0]
    assert "memory " in text
    assert "attention" not in text
    assert main([str(path), "--json", "--input_size", "16"]) == 0
    table = json.loads(capsys.readouterr().out)
    layers = {x["name"]: x for x in table["layers"]}
    assert layers["layer4.1.conv2"]["density"] == 0.5
    assert layers["layer1.0.conv1"]["density"] == 1
    assert table["macs_effective"] < table["macs_dense"]
    assert table["flops_dense"] == 2 * table["macs_dense"]
    assert table["memory_kept_bytes"] == 4 * table["parameters_kept"]
    assert table["encoder"] == "online"
    assert "training_cost_A" not in table  # no run has written this file
    assert layers["conv1"]["macs_dense"] == 18 * 18 * 8 * 3 * 9  # padding 2


def test_command_on_a_dense_checkpoint(tmp_path, capsys):
    assert main([str(a_run(tmp_path)), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["macs_effective"] == table["macs_dense"]
    assert table["prunable_sparsity"] == 0


def test_command_says_what_training_has_cost(tmp_path, capsys):
    path = a_run(tmp_path, sparse={"name": "synccp"})
    state = torch.load(path) | {"sparse_state": {"cost": {"steps": 4, "sums": [2.0, 3.0]}}}
    torch.save(state, path)
    assert main([str(path), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["training_cost_A"] == pytest.approx((3 * 0.5 + 0.75) / 4)
    assert main([str(path)]) == 0
    assert "A 0.562, B 0.688, C 0.625" in capsys.readouterr().out


def test_command_names_what_is_missing(tmp_path, capsys):
    assert main([str(tmp_path / "no.ckpt")]) == 2
    path = a_run(tmp_path)
    (tmp_path / "args.json").unlink()
    assert main([str(path)]) == 2
    assert "no args.json beside it" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "x", "-3"])
def test_command_refuses_a_size_that_is_none(tmp_path, size, capsys):
    with pytest.raises(SystemExit):
        main([str(a_run(tmp_path)), "--input_size", size])
    assert "no number of pixels" in capsys.readouterr().err


def test_load_run_refuses_a_file_without_arguments(tmp_path):
    from solo.checkpoints import load_run

    path = a_run(tmp_path)
    (tmp_path / "args.json").unlink()
    with pytest.raises(CheckpointError, match=r"args\.json"):
        load_run(path)
