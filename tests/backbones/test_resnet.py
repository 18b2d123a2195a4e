# SPDX-License-Identifier: MIT
"""ResNets: layout, width, stems, options."""

import pickle
import subprocess
import sys

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from solo import backbones
from solo.backbones import BACKBONES, build_encoder, features_dim, get_builder
from solo.errors import ConfigError

pytestmark = pytest.mark.unit


def cfg(name="resnet18", dataset="cifar10", method="byol", **kwargs):
    return OmegaConf.create(
        {
            "method": method,
            "backbone": {"name": name, "kwargs": kwargs},
            "data": {"dataset": dataset},
        }
    )


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "params", "keys", "inplanes"),
    [("resnet18", 11_689_512, 122, 512), ("resnet50", 25_557_032, 320, 2048)],
)
def test_builder_is_torchvisions(name, params, keys, inplanes):
    with torch.device("meta"):
        net = BACKBONES[name](method="simclr")
    assert (parameters(net), len(net.state_dict()), net.inplanes) == (params, keys, inplanes)
    assert f"{type(net).__module__}.{type(net).__name__}" == "torchvision.models.resnet.ResNet"


def test_cifar_stem_keeps_padding_two():
    for dataset in ("cifar10", "cifar100", "digits"):
        net = build_encoder(cfg(dataset=dataset, width=8))
        assert net.conv1.weight.shape == (8, 3, 3, 3)
        assert net.conv1(torch.zeros(1, 3, 32, 32)).shape[-2:] == (34, 34)
        assert isinstance(net.maxpool, nn.Identity)
        assert isinstance(net.fc, nn.Identity)
    net = build_encoder(cfg(dataset="stl10", width=8))
    assert net.conv1.weight.shape == (8, 3, 7, 7)
    assert isinstance(net.maxpool, nn.MaxPool2d)


@pytest.mark.parametrize(("name", "features"), [("resnet18", 64), ("resnet50", 256)])
def test_width_scales_every_stage(name, features):
    net = build_encoder(cfg(name, width=8))
    wide = build_encoder(cfg(name))
    assert features_dim(net) == features == features_dim(wide) // 8
    for key, value in wide.state_dict().items():
        shape = tuple(
            size // 8 if axis < 2 and size > 3 else size for axis, size in enumerate(value.shape)
        )
        assert net.state_dict()[key].shape == shape, key
    assert list(net.state_dict()) == list(wide.state_dict())
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, features)


def test_width_is_initialised_as_torchvision_does():
    torch.manual_seed(0)
    net = backbones.resnet18(None, width=32)
    for weight in (net.conv1.weight, net.layer3[0].conv1.weight):
        fan_out = weight.shape[0] * weight.shape[2] * weight.shape[3]
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"backbone\.kwargs\.widht.*Did you mean 'width'"):
        build_encoder(cfg(widht=8))
    with pytest.raises(ConfigError, match="positive integer"):
        build_encoder(cfg(width=0))
    with pytest.raises(ConfigError, match="positive integer"):
        build_encoder(cfg(width="8"))
    with pytest.raises(ConfigError, match="have width 64, not 8"):
        build_encoder(cfg(width=8, weights="DEFAULT"))
    with pytest.raises(ConfigError, match=r"backbone\.name.*'resnet81'.*Did you mean 'resnet18'"):
        get_builder("resnet81")


def test_method_is_looked_up_and_kwargs_may_be_absent():
    bare = OmegaConf.create({"backbone": {"name": "resnet18"}, "data": {"dataset": "custom"}})
    assert features_dim(build_encoder(bare)) == 512


def test_features_dim_of_a_silent_module():
    with pytest.raises(ConfigError, match="Linear does not state its number of features"):
        features_dim(nn.Linear(2, 2))


def test_all_names_and_pickling():
    assert len(BACKBONES) == 21 + 2  # of solo-learn, and AlexNet and VGG-19
    for name, builder in BACKBONES.items():
        assert pickle.loads(pickle.dumps(builder)) is builder is getattr(backbones, name)


def test_import_and_resnets_do_not_pay_for_timm():
    code = (
        "import sys, solo.backbones as b; assert 'torch' not in sys.modules;"
        "b.resnet18(None, width=8); assert 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
