# SPDX-License-Identifier: MIT
"""Mask sets, mask files and the rule for changing a mask."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from solo.errors import CheckpointError, ConfigError
from sparse_ext.masks import patching
from sparse_ext.masks.encoder import apply_new, switch_off_
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.masks.masked_layers import mask_module

pytestmark = pytest.mark.unit


def masked_net():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6, 5))
    patching.apply([patching.masking(["1", "3"])], net)
    return net


def random_masks(density=0.4):
    return {"1": torch.rand(6, 8, 3, 3) < density, "3": torch.rand(5, 6) < density}


def test_counts():
    masks = MaskSet({"a": torch.tensor([True, False, False]), "b": torch.tensor([[True]])})
    assert (masks.n, masks.nnz, masks.density, masks.sparsity) == (4, 2, 0.5, 0.5)
    assert masks.shapes == {"a": (3,), "b": (1, 1)}
    assert masks.layer_density() == {"a": 1 / 3, "b": 1.0}
    assert list(masks) == ["a", "b"]
    assert "nnz=2" in repr(masks)


def test_iou_and_xor():
    a = MaskSet({"a": torch.tensor([1, 1, 0, 0]).bool(), "b": torch.tensor([1, 0]).bool()})
    b = MaskSet({"a": torch.tensor([1, 0, 1, 0]).bool(), "b": torch.tensor([1, 1]).bool()})
    assert a.iou(b) == 2 / 5
    assert a.xor_fraction(b) == 3 / 6
    assert a.layer_xor_fraction(b) == {"a": 0.5, "b": 0.5}
    assert (a.iou(a), a.xor_fraction(a)) == (1, 0)
    empty = MaskSet({"a": torch.zeros(2).bool()})
    assert empty.iou(empty) == 1


def test_xor_fraction_is_global_and_bounded_by_the_gap():
    a, b = MaskSet(random_masks(0.1)), MaskSet(random_masks(0.4))
    assert a.xor_fraction(b) >= abs(a.density - b.density)
    swapped = MaskSet({n: a[n] for n in reversed(list(a))})
    assert swapped.xor_fraction(b) == a.xor_fraction(b)


def test_from_module_follows_the_buffers():
    net = masked_net()
    masks = MaskSet.from_module(net)
    assert list(masks) == ["1", "3"]
    assert masks.sparsity == 0
    net[3].mask[0] = False
    assert masks.nnz == masks.n - 6
    net._apply(lambda t: t.clone())  # what .to(device) does: buffers become other tensors
    net[3].mask[1] = False
    assert masks.nnz == masks.n - 12
    frozen = masks.clone()
    net[3].mask.fill_(True)
    assert frozen.nnz == masks.n - 12
    assert masks.sparsity == 0


def test_copy_in_place_keeps_identity():
    net = masked_net()
    buffers = [net[1].mask, net[3].mask]
    new = random_masks()
    masks = MaskSet.from_module(net).copy_(new)
    assert buffers[0] is net[1].mask
    assert buffers[1] is net[3].mask
    assert all(torch.equal(masks[n], new[n]) for n in new)


def test_copy_refuses_other_layers_and_changes_nothing():
    masks = MaskSet(random_masks())
    before = masks.checksum()
    for wrong, message in (
        ({"1": masks["1"], "30": masks["3"]}, "No masked layer is called '30'.*Did you mean '3'"),
        ({"1": ~masks["1"]}, "none for layer '3'"),
        ({"1": ~masks["1"], "3": torch.ones(2, 2).bool()}, r"'3': mask of shape \(5, 6\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            masks.copy_(wrong)
    assert masks.checksum() == before


def test_no_masks_and_wrong_dtype():
    with pytest.raises(ConfigError, match="no masked layer"):
        MaskSet.from_module(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"'a' is torch.float32, not bool"):
        MaskSet({"a": torch.ones(3)})


def test_checksum_sees_every_bit_and_no_layout():
    masks = MaskSet(random_masks())
    twin = MaskSet({n: m.clone() for n, m in masks.items()})
    assert twin.checksum() == masks.checksum()
    last = {"1": masks["1"].to(memory_format=torch.channels_last), "3": masks["3"]}
    assert MaskSet(last).checksum() == masks.checksum()
    seen = {masks.checksum()}
    for name in twin:
        for index in range(0, twin[name].numel(), 7):
            flat = twin[name].view(-1)
            flat[index] ^= True
            seen.add(twin.checksum())
            flat[index] ^= True
    assert len(seen) == 1 + len(range(0, 432, 7)) + len(range(0, 30, 7))
    assert MaskSet({"1": masks["3"], "3": masks["1"]}).checksum() not in seen
    assert -(2**63) <= masks.checksum() < 2**63


def test_save_and_load(tmp_path):
    path = tmp_path / "deep" / "masks.safetensors"
    odd = {"z.conv": torch.rand(5, 3, 3, 3) < 0.5, "a.fc": torch.rand(3, 3) < 0.5}
    odd["z.conv"] = odd["z.conv"].to(memory_format=torch.channels_last)
    masks = MaskSet(odd)
    masks.save(path)
    loaded = MaskSet.load(path)
    assert list(loaded) == ["z.conv", "a.fc"]
    assert all(torch.equal(loaded[n], masks[n]) for n in masks)
    assert [p.name for p in path.parent.iterdir()] == ["masks.safetensors"]


def test_file_takes_one_bit_per_weight(tmp_path):
    path = tmp_path / "masks.safetensors"
    MaskSet({"a": torch.rand(1000, 800) < 0.5}).save(path)
    assert path.stat().st_size < 1000 * 800 / 8 + 1000


def test_damaged_files(tmp_path):
    path = tmp_path / "masks.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        MaskSet.load(path)
    path.write_bytes(b"nonsense" * 10)
    with pytest.raises(CheckpointError, match="damaged"):
        MaskSet.load(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"instead of .*MaskSet\.save"):
        MaskSet.load(path)
    MaskSet(random_masks()).save(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match="damaged"):
        MaskSet.load(path)
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match its checksum"):
        MaskSet.load(path)


def changed_layer():
    """A layer with I1 and I2 true, a new mask, and the two tensors' old values."""
    old, new = torch.rand(6, 7) < 0.5, torch.rand(6, 7) < 0.4
    latent, state = torch.randn(6, 7), torch.randn(6, 7)
    return latent * old, latent * ~old, state * old, old, new, latent


def test_apply_new_with_latents():
    weight, shadow, state, old, new, latent = changed_layer()
    weight.requires_grad_()
    identity, was, state_was = old, old.clone(), state.clone()
    change = apply_new(weight, old, new, shadow, "latent", [state])
    assert torch.equal(weight.detach(), torch.where(new, latent, 0))
    assert torch.equal(shadow, torch.where(new, 0, latent))
    assert torch.equal(weight.detach() + shadow, latent)
    assert torch.equal(state, torch.where(was & new, state_was, 0))
    assert torch.equal(identity, new)
    assert torch.equal(change.dropped, was & ~new)
    assert torch.equal(change.grown, new & ~was)


def test_apply_new_from_zero():
    weight, shadow, state, old, new, latent = changed_layer()
    was = old.clone()
    apply_new(weight, old, new, shadow, "zero", [state])
    assert torch.equal(weight, torch.where(new & was, latent, 0))
    assert torch.equal(shadow, torch.where(new, 0, latent))
    assert not state[~(was & new)].any()


def test_apply_new_without_shadow():
    weight, _, _, old, new, latent = changed_layer()
    was = old.clone()
    apply_new(weight, old, new)
    assert torch.equal(weight, torch.where(new & was, latent, 0))


def test_dropped_and_grown_in_one_update_keeps_value_and_state():
    weight, shadow, state, old, _, _ = changed_layer()
    before = [t.clone() for t in (weight, shadow, state)]
    apply_new(weight, old, old.clone(), shadow, "zero", [state])
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, shadow, state), strict=True))


def test_apply_new_bad_option():
    with pytest.raises(ConfigError, match="Did you mean 'latent'"):
        apply_new(torch.ones(1), torch.ones(1).bool(), torch.ones(1).bool(), regrow="latents")


def test_deepcopy_gives_independent_masks():
    net = masked_net()
    twin = copy.deepcopy(net)
    twin[3].mask.fill_(False)
    assert MaskSet.from_module(net).sparsity == 0
    assert MaskSet.from_module(twin).nnz == 432


def test_pruned_weights_are_positive_zeros():
    weight = torch.tensor([-1.0, 2.0, -3.0, 4.0])
    mask = torch.tensor([True, True, True, True])
    new = torch.tensor([False, False, True, True])
    apply_new(weight, mask, new)
    assert weight.tolist() == [0, 0, -3, 4]
    assert not torch.signbit(weight[:2]).any()
    layer = mask_module(nn.Linear(8, 8))
    layer.mask[:, ::2] = False
    layer.apply_mask()
    assert not torch.signbit(layer.weight[~layer.mask]).any()
    tensor = -torch.rand(8, 8)
    switch_off_(tensor, layer.mask)
    assert not torch.signbit(tensor[~layer.mask]).any()
