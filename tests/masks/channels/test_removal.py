# SPDX-License-Identifier: MIT
"""Slim networks compute what the masked ones compute; what goes is what brute force says can go."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.masked_layers import mask_module, masked_layers
from tests.export.nets import empty, encoder, features, images, masked, shake

pytestmark = pytest.mark.unit
WIDTHS = {"width": 8}


def widths(net):
    return {n: tuple(m.weight.shape[:2]) for n, m in net.named_modules() if hasattr(m, "mask")}


def slimmed(net, size=16):
    """Shrink a copy; check that its features are the masked network's."""
    before, slim = features(net, size), copy.deepcopy(net)
    report = shrink_([slim])
    after = features(slim, size)
    assert after.shape == before.shape
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5 * float(before.abs().max()))
    return slim, report


def test_streams_of_a_resnet():
    spaces = {s.name: s for s in Channels(encoder(**WIDTHS)).spaces}
    stream = spaces["layer2.0.conv2"]
    assert set(stream.producers) == {"layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"}
    assert set(stream.consumers) == {"layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"}
    assert set(stream.norms) == {"layer2.0.bn2", "layer2.0.downsample.1", "layer2.1.bn2"}
    assert spaces["layer1.0.conv1"].producers == ["layer1.0.conv1"]
    assert not stream.fixed
    assert "puts out" in spaces["layer4.0.conv2"].fixed


def test_dead_channels_with_a_zero_constant_go_exactly():
    """With beta below what the running mean adds, a ReLU makes the constant zero."""
    net = masked(encoder(**WIDTHS))
    with torch.no_grad():
        net.layer1[0].bn1.bias[2:6] = -5.0
    empty(net, "layer1.0.conv1", slice(2, 6))
    slim, report = slimmed(net)
    assert report.widths == {"layer1.0.conv1": (8, 4)}
    assert report.carriers == 0
    assert torch.equal(slim.layer1[0].conv1.weight, net.layer1[0].conv1.weight[[0, 1, 6, 7]])
    assert torch.equal(slim.layer1[0].conv2.weight, net.layer1[0].conv2.weight[:, [0, 1, 6, 7]])
    assert torch.equal(slim.layer1[0].bn1.running_var, net.layer1[0].bn1.running_var[[0, 1, 6, 7]])
    assert slim.layer1[0].conv1.out_channels == slim.layer1[0].conv2.in_channels == 4
    assert slim.layer1[0].bn1.num_features == 4


def test_other_constants_are_carried_by_one_channel():
    """Zero padding cuts constants off at the border, so no bias could stand in for them."""
    net = masked(encoder(**WIDTHS))
    with torch.no_grad():
        net.layer1[0].bn1.bias[2:6] = torch.tensor([5.0, 3.0, 4.0, -5.0])
    empty(net, "layer1.0.conv1", slice(2, 6))
    slim, report = slimmed(net)
    assert report.widths == {"layer1.0.conv1": (8, 5)}
    assert report.carriers == 1
    assert (slim.layer1[0].conv1.weight.flatten(1) == 0).all(1).sum() == 1


def test_a_residual_stream_goes_only_as_a_whole():
    net = masked(encoder(**WIDTHS))
    writers = ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"]
    for name in writers[:2]:
        empty(net, name, slice(0, 9))
    alone = copy.deepcopy(net)
    report = shrink_([alone])
    assert not report.removed
    assert "9 of 16 outputs are empty and stay" in report.obstacles["layer2.0.conv2"]
    empty(net, writers[2], slice(0, 9))
    slim, report = slimmed(net)
    assert report.widths["layer2.0.conv2"][1] in (7, 8)  # one more if there is a constant
    for name in writers:
        assert slim.get_submodule(name).weight.shape[0] == report.widths["layer2.0.conv2"][1]


def test_features_keep_their_width():
    net = masked(encoder(**WIDTHS))
    for name in ("layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2"):
        empty(net, name, slice(0, 20))
    report = shrink_([net])
    assert "layer4.0.conv2" not in report.widths
    assert "what the network puts out" in report.obstacles["layer4.1.conv2"]


def test_columns_without_weights_free_a_living_channel():
    """8x8 blocks whose column vanished: nobody reads the channel, whatever it holds."""
    net = masked(encoder(**WIDTHS), granularity="block8")
    layer = masked_layers(net)["layer3.0.conv2"]
    layer.mask[:, 8:24] = False
    layer.apply_mask()
    slim, report = slimmed(net)
    assert report.widths == {"layer3.0.conv1": (32, 16)}
    assert torch.equal(
        slim.layer3[0].conv1.weight, net.layer3[0].conv1.weight[[*range(8), *range(24, 32)]]
    )


def test_what_only_removed_channels_fed_goes_too():
    """A chain: the last layer reads nothing of the middle one, which alone reads the first."""
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3)
    )
    mask_module(net[2]), mask_module(net[4])
    net[4].mask[:, 1:] = False  # only channel 0 of the middle layer is read
    net[2].mask[0, 2:] = False  # and that reads channels 0 and 1 of the first
    for layer in (net[2], net[4]):
        layer.apply_mask()
    before, report = features(net), shrink_([net])
    assert report.widths == {"0": (6, 2), "2": (5, 1)}
    torch.testing.assert_close(features(net), before)


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("resnet18", {"width": 8}, 16),
        ("resnet50", {"width": 4}, 16),
        ("vgg19", {"width": 4}, 16),
        ("wide_resnet28w2", {}, 8),
    ],
)
def test_any_family_with_random_dead_filters(name, kwargs, size):
    """Half of all filters, whole streams included, constants of both signs, biases."""
    net = masked(encoder(name, **kwargs), stem_dense=False)
    generator = torch.Generator().manual_seed(5)
    for space in Channels(net).spaces:
        dead = torch.rand(space.size, generator=generator) < 0.5
        for layer in space.producers:
            empty(net, layer, dead)
    slim, report = slimmed(net, size)
    expected = {s.name: s for s in Channels(net).spaces if not s.fixed}
    assert set(report.widths) <= set(expected)
    assert report.removed > sum(space.size for space in expected.values()) / 3
    for space in expected.values():
        alive = masked_layers(net)[space.name].mask.flatten(1).any(1).sum()
        spare = 2 if len(space.producers) > 1 else 1  # blocks of a stream see other constants
        assert alive <= report.widths.get(space.name, (0, space.size))[1] <= alive + spare
    assert sum(p.numel() for p in slim.parameters()) == report.parameters[1]


def test_hidden_units_of_a_vit():
    """Constants of GELU(bias) are carried too; layer norms fix the tokens' width."""
    net = masked(encoder("vit_tiny", dataset="imagenet", img_size=16, patch_size=8))
    empty(net, "blocks.1.mlp.fc1", slice(10, 400))
    with torch.no_grad():
        nn.init.uniform_(net.blocks[1].mlp.fc1.bias, -1, 1)
    slim, report = slimmed(net)
    assert report.widths == {"blocks.1.mlp.fc1": (768, 768 - 390 + 1)}
    assert slim.blocks[1].mlp.fc2.in_features == 379


def test_flattened_maps():
    """A linear layer reads several columns per channel."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 5)
    )
    shake(net)
    mask_module(net[0])
    empty(net, "0", [1, 2, 4])
    with torch.no_grad():
        net[1].bias[[1, 2, 4]] = torch.tensor([-9.0, 4.0, 7.0])
    before = net.eval()(images(8))
    report = shrink_([net])
    assert report.widths == {"0": (6, 4)}
    torch.testing.assert_close(net(images(8)), before, rtol=1e-5, atol=1e-5)


def test_unknown_operations_fix_their_channels():
    class Rolling(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            return self.b(self.a(x).roll(1, dims=1))

    net = Rolling()
    mask_module(net.a)
    empty(net, "a", slice(0, 3))
    before, report = features(net), shrink_([net])
    assert not report.removed
    assert "roll()" in report.obstacles["a"]
    assert torch.equal(features(net), before)


def test_grouped_convolutions_lose_the_same_positions_of_each_group():
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 4, 1)
    )
    mask_module(net[0]), mask_module(net[2]), mask_module(net[3])
    with torch.no_grad():
        net[0].bias[[1, 4]] = 0
    empty(net, "0", [1, 4])
    net[2].mask[:, 1] = False
    net[2].apply_mask()
    before, report = features(net), shrink_([net])
    assert report.widths == {"0:position": (3, 2)}
    assert net[2].weight.shape == (6, 2, 3, 3)
    assert (net[2].in_channels, net[2].groups) == (4, 2)
    torch.testing.assert_close(features(net), before)


def test_a_layer_that_runs_twice_keeps_its_channels():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x))))

    net = Twice()
    mask_module(net.b)
    empty(net, "b", [0, 1])
    before = features(net)
    assert not shrink_([net]).removed
    assert torch.equal(features(net), before)


def test_one_channel_stays_where_all_are_empty():
    net = masked(encoder(**WIDTHS))
    with torch.no_grad():
        net.layer1[0].bn1.bias.fill_(-5.0)
    empty(net, "layer1.0.conv1", slice(None))
    _, report = slimmed(net)
    assert report.widths == {"layer1.0.conv1": (8, 1)}


def test_channels_last_stays():
    net = masked(encoder(width=16)).to(memory_format=torch.channels_last)
    empty(net, "layer1.0.conv1", slice(0, 8))
    slim, _ = slimmed(net)
    assert slim.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_sizes_of_torchvision():
    """A network that solo did not build."""
    net = torchvision.models.resnet18(num_classes=7).eval()
    mask_module(net.layer4[0].conv1)
    empty(net, "layer4.0.conv1", slice(0, 400))
    with torch.no_grad():
        net.layer4[0].bn1.bias.fill_(-1)
    x = images(32, 2)
    before = net(x)
    report = shrink_([net])
    assert report.parameters[0] - report.parameters[1] == 400 * (256 * 9 + 2 + 512 * 9)
    torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)
