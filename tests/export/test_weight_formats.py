# SPDX-License-Identifier: MIT
"""Stripped and packed encoders hold exactly the weights that were kept."""

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from solo.errors import CheckpointError
from sparse_ext.export import load_packed, save_packed, strip
from sparse_ext.masks.mask_set import MaskSet
from sparse_ext.masks.patching import apply, masking

pytestmark = pytest.mark.unit


def dense():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 4))


def sparse(density=0.3):
    net = dense()
    for layer in apply([masking(["0", "3"])], net).values():
        layer.mask.copy_(torch.rand(layer.weight.shape) < density)
        layer.apply_mask()
        layer.register_buffer("score", torch.rand(layer.weight.shape))
        layer.register_buffer("shadow", torch.rand(layer.weight.shape))
    return net.eval()


def test_a_dense_model_loads_the_stripped_state_strictly():
    net, plain, x = sparse(), dense().eval(), torch.randn(2, 3, 4, 4)
    plain.load_state_dict(strip(net.state_dict()))
    assert torch.equal(plain(x), net(x))
    assert plain[0].weight.count_nonzero() == net[0].mask.sum()


def test_strip_multiplies_masks_in_and_leaves_its_input_alone():
    net = sparse()
    nn.init.ones_(net[3].weight)  # as if somebody had written over the stored zeros
    stripped = strip(net.state_dict())
    assert torch.equal(stripped["3.weight"], net[3].mask.float())
    assert net[3].weight.all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_round_trip_is_exact(tmp_path, memory_format, dtype):
    path = tmp_path / "deep" / "encoder.safetensors"
    net = sparse().to(memory_format=memory_format).to(dtype)
    with torch.no_grad():
        net[3].weight[tuple(net[3].mask.nonzero()[0])] = 0  # kept weights may well be zero
    save_packed(net.state_dict(), path)
    state = load_packed(path)
    wanted = {k: v for k, v in net.state_dict().items() if not k.endswith(("score", "shadow"))}
    assert set(state) == set(wanted)
    for key, value in wanted.items():
        assert state[key].dtype is value.dtype
        assert torch.equal(state[key], value), key
    dense().to(dtype).load_state_dict(load_packed(path, masks=False))
    assert len(list(path.parent.iterdir())) == 1


def test_size_of_a_resnet18_at_90_percent(tmp_path):
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for layer in apply([masking(names)], model).values():
        layer.mask.copy_(torch.rand(layer.weight.shape) < 0.1)
        layer.apply_mask()
    save_packed(model.state_dict(), tmp_path / "r18.safetensors")
    kept = MaskSet.from_module(model).nnz
    size = (tmp_path / "r18.safetensors").stat().st_size
    assert size == pytest.approx(4 * kept + 11_166_912 / 8, rel=0.03)


def test_errors(tmp_path):
    path = tmp_path / "encoder.safetensors"
    with pytest.raises(CheckpointError, match="no masks"):
        strip(dense().state_dict())
    state = sparse().state_dict()
    with pytest.raises(CheckpointError, match=r"'3\.weight' has shape \(4, 20\), its mask \(2,\)"):
        save_packed(state | {"3.mask": torch.ones(2).bool()}, path)
    with pytest.raises(CheckpointError, match="no such file"):
        load_packed(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match="save_packed"):
        load_packed(path)
    save_packed(state, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        load_packed(path)


def test_values_that_do_not_match_their_bits(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "encoder.safetensors"
    save_packed(sparse().state_dict(), path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    for change in (lambda v: v[:-1], lambda v: torch.cat([v, v[:1]])):
        tensors = load_file(path)
        tensors["3.weight"] = change(tensors["3.weight"])
        save_file(tensors, tmp_path / "changed", metadata)
        with pytest.raises(CheckpointError, match=r"damaged.*kept weights"):
            load_packed(tmp_path / "changed")
