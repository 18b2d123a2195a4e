# SPDX-License-Identifier: MIT
"""Shadows and scores in packed checkpoints come back bit by bit."""

import pytest
import torch

from sparse_ext.config import build
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch
from sparse_ext.masks.packing import pack_
from tests.pruning.toys import tiny_net

pytestmark = pytest.mark.unit


def encoder(seed, dtype):
    torch.manual_seed(seed)
    net = patch(tiny_net().to(dtype), build("gmp"))
    found = Encoder(net)
    for name in ("shadow", "score"):
        found.add_buffer(name)
    for layer in found.layers.values():
        layer.mask.copy_(torch.rand(layer.mask.shape) < 0.4)
        layer.shadow.copy_(torch.randn(layer.mask.shape) * ~layer.mask)
        layer.shadow[layer.mask] = 0.0
        layer.score.copy_(torch.rand(layer.mask.shape))
        layer.apply_mask()
    return net


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
def test_a_packed_state_is_the_same_state(dtype, fmt, planes):
    net = encoder(0, dtype).to(memory_format=fmt)
    plain = {key: value.clone() for key, value in net.state_dict().items()}
    packed = dict(net.state_dict())
    pack_(packed, planes=planes)
    assert not any(key.endswith((".shadow", ".score")) for key in packed)
    pruned = sum(int((~v).sum()) for k, v in plain.items() if k.endswith(".mask"))
    found = sum(v.numel() for k, v in packed.items() if k.endswith("shadow_packed"))
    assert found == pruned * (plain["3.shadow"].element_size() if planes else 1)
    other = encoder(1, dtype)
    before = dict(packed)
    other.load_state_dict(packed)
    assert packed.keys() == before.keys()  # loading leaves the caller's mapping as it is
    for key, value in other.state_dict().items():
        assert torch.equal(value, plain[key]), key
    fresh = patch(tiny_net().to(dtype), build("gmp"))  # without side buffers of its own
    fresh.load_state_dict(packed)
    assert torch.equal(fresh[3].score, plain["3.score"])
