# SPDX-License-Identifier: MIT
"""Patch rules: collect, check, then apply."""

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext.masks.masked_layers import Masked, MaskedConv2d
from sparse_ext.masks.patching import PatchRule, apply, masking

pytestmark = pytest.mark.unit


def net():
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 3),
            "layer1": nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
            "layer2": nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        }
    )


def test_masking_by_name():
    model = net()
    patched = apply([masking(["layer1.0", "layer2.*"])], model)
    assert list(patched) == ["layer1.0", "layer2.0"]
    assert type(model["layer1"][0]) is MaskedConv2d
    assert patched["layer2.0"] is model["layer2"][0]
    assert not isinstance(model["stem"], Masked)


def test_replacement_by_another_module():
    model = net()
    rule = PatchRule("norm", nn.BatchNorm2d, lambda m: nn.GroupNorm(2, m.num_features))
    assert list(apply([rule, masking(["*"])], model)) == [
        "stem",
        "layer1.0",
        "layer1.1",
        "layer2.0",
        "layer2.1",
    ]
    assert isinstance(model["layer2"][1], nn.GroupNorm)
    assert model["layer1"](model["stem"](torch.randn(2, 3, 8, 8))).shape == (2, 4, 4, 4)


def test_no_match_names_the_nearest_and_changes_nothing():
    model = net()
    with pytest.raises(ConfigError, match=r"'masks': no Conv2d or Linear.*'layer1.1'.*'layer1.0'"):
        apply([masking(["layer2.0", "layer1.1"])], model)
    assert not any(isinstance(m, Masked) for m in model.modules())


def test_two_claims_name_both_rules_and_change_nothing():
    model = net()
    gate = PatchRule("gates", nn.Conv2d, lambda m: nn.Identity(), ("layer*",))
    with pytest.raises(ConfigError, match=r"'masks' and 'gates' both claim 'layer1\.0'"):
        apply([masking(["*"]), gate], model)
    assert not any(isinstance(m, (Masked, nn.Identity)) for m in model.modules())


def test_targets_are_exact_types():
    model = apply([masking(["*"])], net())
    assert len(model) == 3
    with pytest.raises(ConfigError, match=r"no Conv2d or Linear.* is called"):
        apply([masking(["0"])], nn.Sequential(model["stem"]))
