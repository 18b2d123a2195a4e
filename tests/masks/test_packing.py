# SPDX-License-Identifier: MIT
"""Shadows and scores in packed checkpoints come back bit by bit."""

import pytest
import torch

from solo.errors import CheckpointError
from sparse_ext.config import build
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.masks.masking import patch
from sparse_ext.masks.packing import pack_, unpack_masks_
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
    pack_(packed, masked_layers(net), planes=planes)
    assert not any(key.endswith((".mask", ".shadow", ".score")) for key in packed)
    bits = {k: v for k, v in packed.items() if k.endswith("mask_packed")}
    assert sum(v.numel() for v in bits.values()) == sum(
        -(-v.numel() // 8) for k, v in plain.items() if k.endswith(".mask")
    )
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


def test_exponents_of_scores_take_fewer_bits():
    net = encoder(0, torch.float32)
    layer = net[3]
    layer.score.copy_(1e-3 * torch.randn(layer.score.shape).abs())
    layer.score.flatten()[:3] = torch.tensor([0.0, 1e-30, 1e20])
    packed = dict(net.state_dict())
    pack_(packed, masked_layers(net))
    assert packed["3.score_packed"].dtype is torch.uint8
    assert len(packed["3.score_packed"]) < 3.6 * layer.score.numel()
    other = encoder(1, torch.float32)
    other.load_state_dict(packed)
    assert torch.equal(other[3].score, layer.score)
    damaged = packed | {"3.score_packed": packed["3.score_packed"].clone()}
    damaged["3.score_packed"][-8:] = 255
    with pytest.raises(CheckpointError, match="damaged"):
        other.load_state_dict(damaged)


@pytest.mark.parametrize("planes", [True, False])
@pytest.mark.parametrize("kept", [True, False])
def test_layers_that_keep_all_or_nothing(kept, planes):
    net = encoder(0, torch.float32)
    for layer in masked_layers(net).values():
        layer.mask.fill_(kept)
        layer.shadow.fill_(0.0 if kept else 2.0)
        layer.apply_mask()
    packed = dict(net.state_dict())
    pack_(packed, masked_layers(net), planes=planes)
    other = encoder(1, torch.float32)
    other.load_state_dict(packed)
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("packed_scores", [True, False])
def test_files_with_a_byte_for_each_mask_bit_are_read(packed_scores):
    """As they were written before: masks as bools, scores packed as they are, or not at all."""
    net = encoder(0, torch.float32)
    plain = {key: value.clone() for key, value in net.state_dict().items()}
    state = dict(plain)
    if packed_scores:
        for name in masked_layers(net):
            shadow, mask = state.pop(f"{name}.shadow"), state[f"{name}.mask"]
            state[f"{name}.shadow_packed"] = shadow[~mask]
            state[f"{name}.score_packed"] = state.pop(f"{name}.score").flatten()
    other = encoder(1, torch.float32)
    other.load_state_dict(state)
    for key, value in other.state_dict().items():
        assert torch.equal(value, plain[key]), key


def test_bits_of_another_layer_are_refused():
    net = encoder(0, torch.float32)
    packed = dict(net.state_dict())
    pack_(packed, masked_layers(net))
    packed["3.mask_packed"] = packed["3.mask_packed"][1:]
    with pytest.raises(CheckpointError, match=r"'3\.mask_packed' has no bit"):
        encoder(1, torch.float32).load_state_dict(packed)
    del packed["3.weight"]
    with pytest.raises(CheckpointError, match=r"'3\.mask_packed' has no bit"):
        unpack_masks_(packed)
