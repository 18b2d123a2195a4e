# SPDX-License-Identifier: MIT
"""Which layers are prunable."""

import pytest
import torchvision
from torch import nn
from torch.nn.utils import prune

from solo.errors import ConfigError
from sparse_ext.masks.granularity import parse
from sparse_ext.masks.masked_layers import mask_module
from sparse_ext.masks.patching import apply, masking
from sparse_ext.masks.prunable import prunable, select

pytestmark = pytest.mark.unit


def resnet18():
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    return model


def test_resnet_stem_and_classifier():
    model = resnet18()
    layers = prunable(model)
    assert len(layers) == 19
    assert sum(m.weight.numel() for m in layers.values()) == 11_157_504
    assert "layer2.0.downsample.0" in layers
    assert select(model).dense == {"conv1": "stem", "fc": "classifier"}
    with_stem = prunable(model, stem_dense=False)
    assert next(iter(with_stem)) == "conv1"
    assert sum(m.weight.numel() for m in with_stem.values()) == 11_159_232


def test_selection_is_the_same_after_masking():
    model = resnet18()
    before = list(prunable(model))
    apply([masking(before)], model)
    assert list(prunable(model)) == before


def test_exclude():
    chosen = select(resnet18(), exclude=["*.downsample.*", "layer4.1.conv?"])
    assert len(chosen.layers) == 14
    assert chosen.dense["layer4.1.conv2"] == "excluded by 'layer4.1.conv?'"
    with pytest.raises(ConfigError, match=r"no layer is called 'layer1.0.conv9'.*layer1.0.conv"):
        select(resnet18(), exclude=["layer1.0.conv9"])


def test_description_lists_every_dense_layer():
    text = select(resnet18()).describe()
    assert "Prunable: 19 layers, 11,157,504 weights." in text
    assert "dense: conv1 (stem)" in text
    assert "dense: fc (classifier)" in text


def test_layers_that_compute_their_weight_stay_dense():
    net = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    assert list(prunable(net)) == ["0"]
    assert "may compute its weight" in select(net).dense["1"]


def test_a_shared_weight_counts_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    assert list(prunable(net)) == ["0"]
    assert select(net).dense["2"] == "shares its weight with 0"


def test_linear_layers_of_a_transformer():
    block = nn.ModuleDict(
        {"qkv": nn.Linear(8, 24), "norm": nn.LayerNorm(8), "mlp": nn.Linear(8, 8)}
    )
    net = nn.ModuleDict(
        {"patch_embed": nn.Conv2d(3, 8, 4, 4), "block": block, "head": nn.Linear(8, 2)}
    )
    assert list(prunable(net)) == ["block.qkv", "block.mlp"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "nothing to prune.*0: stem"),
        (nn.BatchNorm2d(3), "nothing to prune.*no layer"),
    ],
)
def test_nothing_to_prune(net, message):
    with pytest.raises(ConfigError, match=message):
        prunable(net)


def test_a_block_size_that_no_layer_allows():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3), nn.Linear(12, 4))
    message = r"granularity=block16 fits no layer of this Sequential \(1: 12x16 .*2: 4x12.*smaller"
    with pytest.raises(ConfigError, match=message):
        select(net, granularity=parse("block16"))
    with pytest.raises(ConfigError, match="nothing to prune"):
        select(net[:1], granularity=parse("block16"))


def test_depthwise_layers_have_their_reasons():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Linear(16, 16))
    for name, reason in (("2:4", "1 input channels"), ("block8", "16 channel groups of 1 outputs")):
        chosen = select(net, granularity=parse(name))
        assert list(chosen.layers) == ["2"]
        assert reason in chosen.describe()
    assert list(select(net).layers) == ["1", "2"]


@pytest.mark.parametrize(
    ("change", "maker"),
    [
        (nn.utils.weight_norm, "weight_norm"),
        (nn.utils.spectral_norm, "spectral_norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"torch\.nn\.utils\.prune"),
    ],
)
@pytest.mark.parametrize("index", [1, 3])
def test_weights_that_are_computed_before_every_pass_are_refused(change, maker, index):
    """A mask on the stored tensor would not be in the weight that the pass uses."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    change(net[index])
    with pytest.raises(ConfigError, match=rf"'{index}' has no weight of its own: .*{maker}"):
        select(net)
    with pytest.raises(ConfigError, match="computes its weight"):
        mask_module(net[index])
    assert list(select(net, exclude=[str(index)]).layers) == [str(4 - index)]
