# SPDX-License-Identifier: MIT
"""Each export is loaded again by what it is meant for."""

import json

import pytest
import scipy.sparse
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from solo.backbones import features_dim
from solo.errors import CheckpointError, ConfigError
from solo.files.run_args import EMBEDDED
from sparse_ext.export import (
    check_nm,
    load_csr,
    load_packed,
    load_slim,
    save_csr,
    save_packed,
    slim,
)
from sparse_ext.export.__main__ import main
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.pruning.coupled_units import CoupledUnits
from tests.export.nets import empty, encoder, features, masked

pytestmark = pytest.mark.unit
ARGS = {
    "method": "byol",
    "backbone": {"name": "resnet18", "kwargs": {"width": 8}},
    "data": {"dataset": "cifar10"},
    "sparse": {"name": "gmp", "granularity": "filter", "final": 0.5},
}


def run_folder(path, net, momentum=None, args=ARGS):
    """A run's folder: args.json and a checkpoint."""
    state = {f"backbone.{k}": v for k, v in net.state_dict().items()}
    if momentum is not None:
        state |= {f"momentum_backbone.{k}": v for k, v in momentum.state_dict().items()}
    path.mkdir(parents=True, exist_ok=True)
    (path / "args.json").write_text(json.dumps(args))
    torch.save({"state_dict": state}, path / "last.ckpt")
    return path / "last.ckpt"


def pruned(seed=0):
    net = masked(encoder(width=8, seed=seed))
    for name in ("layer1.0.conv1", "layer3.1.conv1", "layer4.0.conv1"):
        empty(net, name, slice(2, 7))
    return net


@pytest.fixture
def checkpoint(tmp_path):
    return run_folder(tmp_path / "run", pruned(), pruned(1))


def test_slim_files_load_with_one_call(checkpoint, tmp_path):
    for encoder_name, net in (("online", pruned()), ("momentum", pruned(1))):
        done = slim(checkpoint, tmp_path / encoder_name, encoder_name)
        again = load_slim(done.path.parent)
        assert done.difference < 1e-5
        assert again.layer1[0].conv1.out_channels == done.report.widths["layer1.0.conv1"][1] < 8
        assert features_dim(again) == 64
        torch.testing.assert_close(features(again), features(net), rtol=1e-5, atol=1e-5)
        args = json.loads((done.path.parent / "args.json").read_text())
        assert "sparse" not in args
        assert args["backbone"] == ARGS["backbone"]


def test_heads_and_widths_of_a_vit_load_without_tracing(tmp_path, monkeypatch):
    """Heads, dimensions of heads and hidden units; the features keep their width."""
    kwargs = {"img_size": 32, "patch_size": 16}
    net = masked(encoder("vit_tiny", **kwargs), stem_dense=False)
    units = CoupledUnits("filter", Encoder(net), net)
    kept = {name: torch.arange(n) % 2 == 0 for name, n in units.sizes.items()}
    Encoder(net).change(units.expand(kept, Encoder(net)), "zero")
    units.companions.project(net, Encoder(net).masks)
    before = features(net, 32)
    args = {
        "method": "byol",
        "backbone": {"name": "vit_tiny", "kwargs": kwargs},
        "data": {"dataset": "cifar10"},
        "sparse": {"name": "gmp", "granularity": "filter", "coupled": True},
    }
    done = slim(run_folder(tmp_path / "run", net, args=args))
    assert done.difference < 1e-5
    assert done.report.widths["blocks.0.attn.qkv:head"] == (3, 2)
    assert done.report.widths["blocks.0.attn.qkv:dim"] == (64, 32)
    monkeypatch.setattr(Channels, "__init__", None)
    again = load_slim(done.path)
    assert (again.blocks[0].attn.num_heads, again.blocks[0].attn.head_dim) == (2, 32)
    assert again.blocks[0].mlp.fc1.out_features == 384
    torch.testing.assert_close(features(again, 32), before, rtol=1e-5, atol=1e-5)


def test_masks_with_zeros_left_stay_for_fine_tuning(tmp_path):
    net = pruned()
    empty(net, "layer2.0.conv2", [1, 2])  # the stream is alive: these cannot go
    done = slim(run_folder(tmp_path / "run", net))
    again = load_slim(done.path)
    carrying = {"layer1.0.conv1", "layer3.1.conv1", "layer4.0.conv1"}
    assert set(masked_layers(again)) - carrying == {"layer2.0.conv2"}
    assert again.layer2[0].conv2.mask.flatten(1).any(1).sum() == 14


def test_widths_that_vector_units_like(checkpoint, tmp_path, capsys):
    """Empty channels stay up to a multiple; what the encoder computes is the same."""
    least, done = slim(checkpoint, tmp_path / "1"), slim(checkpoint, tmp_path / "3", multiple=3)
    assert {after % 3 for _, after in least.report.widths.values()} == {0, 1}
    for name, (before, after) in least.report.widths.items():
        assert done.report.widths[name] == (before, -(-after // 3) * 3)
    assert done.difference < 1e-5
    torch.testing.assert_close(
        features(load_slim(done.path)), features(pruned()), rtol=1e-5, atol=1e-5
    )
    assert main(["slim", str(checkpoint), "--multiple", "64"]) == 2
    error = capsys.readouterr().err
    assert "layer1.0.conv1: 5 of 8 outputs are empty and stay" in error
    assert "the width is to be a multiple of 64" in error
    assert main(["slim", str(checkpoint), "--multiple", "0"]) == 2
    assert "multiple=0: widths are multiples of 1 or more" in capsys.readouterr().err


def test_command_line(checkpoint, tmp_path, capsys):
    assert main(["slim", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "layer1.0.conv1                        8 " in out
    assert (checkpoint.parent / "slim" / "last-slim.safetensors").exists()
    for name in ("dense", "packed", "csr"):
        assert main([name, str(checkpoint)]) == 0
        assert "wrote" in capsys.readouterr().out
    from safetensors.torch import load_file

    plain = encoder(width=8, seed=9)
    plain.load_state_dict(load_file(checkpoint.with_name("last-dense.safetensors")))
    assert torch.equal(features(plain), features(pruned()))
    plain.load_state_dict(load_packed(checkpoint.with_name("last-packed.safetensors"), masks=False))
    assert torch.equal(features(plain), features(pruned()))


def test_nothing_to_slim_says_why(tmp_path, capsys):
    torch.manual_seed(0)
    net = masked(encoder(width=8), granularity="element")
    for layer in masked_layers(net).values():
        layer.mask.copy_(torch.rand(layer.mask.shape) < 0.8)
        layer.apply_mask()
    path = run_folder(tmp_path / "element", net)
    assert main(["slim", str(path)]) == 2
    error = capsys.readouterr().err
    assert "nothing to remove. Every channel keeps some" in error
    assert "sparse.coupled=true" in error
    net = masked(encoder(width=8))
    empty(net, "layer4.1.conv2", [1, 2, 3])
    with pytest.raises(
        CheckpointError, match="3 of 64 outputs are empty and stay: is what the net"
    ):
        slim(run_folder(tmp_path / "features", net))


def test_masks_of_other_weights(tmp_path):
    net = pruned()
    with torch.no_grad():
        nn.init.ones_(net.layer1[0].conv1.weight)
    with pytest.raises(CheckpointError, match=r"mask of 'layer1\.0\.conv1' has no effect"):
        slim(run_folder(tmp_path, net))


def test_a_slim_file_for_another_architecture(checkpoint, tmp_path):
    """What a file says of itself comes before what lies beside it; without, the two must fit."""
    done = slim(checkpoint, tmp_path / "out")
    expected = features(load_slim(done.path))
    other = {**ARGS, "sparse": None, "backbone": {"name": "resnet18", "kwargs": {"width": 4}}}
    done.path.with_name("args.json").write_text(json.dumps(other))
    assert torch.equal(features(load_slim(done.path)), expected)
    with safe_open(done.path, "pt") as file:
        about = {key: value for key, value in file.metadata().items() if key != EMBEDDED}
    tensors = load_file(done.path)
    save_file(tensors, done.path, about)
    with pytest.raises(CheckpointError, match="slimmed from another architecture"):
        load_slim(done.path)


# -- packed, CSR -------------------------------------------------------------------------------


def test_packed_half_round_trip_and_size(tmp_path):
    """Exact for values that are float16; ResNet-18 at 90% under 6 MB."""
    from torchvision.models import resnet18

    from sparse_ext.masks.patching import apply, masking

    model = resnet18()
    model.fc = nn.Identity()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for layer in apply([masking(names)], model).values():
        layer.mask.copy_(torch.rand(layer.weight.shape) < 0.1)
        layer.apply_mask()
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_packed(state, tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 4e6
    loaded = load_packed(tmp_path / "half.safetensors")
    assert all(torch.equal(loaded[k], v) for k, v in state.items())
    save_packed(model.state_dict(), tmp_path / "rounded.safetensors", half=True)
    rounded = load_packed(tmp_path / "rounded.safetensors")
    assert all(torch.equal(rounded[k], v) for k, v in state.items())


def test_csr_is_what_scipy_makes_of_it(tmp_path):
    net, path = pruned(), tmp_path / "e.safetensors"
    with torch.no_grad():
        net.layer2[0].conv1.weight[3, 3, 1, 1] = 0  # a kept weight that is zero
    save_csr(net.state_dict(), path)
    state = load_csr(path)
    for name, layer in masked_layers(net).items():
        matrix, weight = state[f"{name}.weight"], layer.weight.detach().flatten(1)
        wanted = scipy.sparse.csr_matrix(
            (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy()),
            weight.shape,
        )
        x = torch.randn(weight.shape[1], 3)
        torch.testing.assert_close(matrix @ x, weight @ x, rtol=1e-4, atol=1e-5)
        assert (wanted.toarray() == weight.numpy()).all()
        assert matrix.values().numel() == layer.mask.sum()
    plain = encoder(width=8, seed=9)
    plain.load_state_dict(load_csr(path, dense=True))
    assert torch.equal(features(plain), features(net))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="damaged"):
        load_csr(path)


# -- N:M ---------------------------------------------------------------------------------------


def nm_net(n=2):
    net = masked(encoder(width=8), granularity=f"{n}:4", final=1.0)
    for layer in masked_layers(net).values():
        groups = torch.rand(layer.weight.movedim(1, -1).shape).unflatten(-1, (-1, 4))
        kept = groups.argsort(-1).argsort(-1) < n
        layer.mask.copy_(kept.flatten(-2).movedim(-1, 1))
        layer.apply_mask()
    return net


def test_check_nm():
    report = check_nm(nm_net().state_dict())
    assert report.pattern == "2:4"
    assert len(report.layers) == 19
    assert "layer1.0.conv1" not in report.hardware  # 8 inputs
    assert "layer2.1.conv1" in report.hardware
    assert check_nm(nm_net(1).state_dict(), "1:4").pattern == "1:4"
    assert check_nm(nm_net(1).state_dict(), "2:4").pattern == "2:4"  # at most two


def test_what_is_not_nm():
    net = nm_net()
    layer = net.layer1[0].conv2
    layer.mask[1, :4, 0, 2] = True
    with torch.no_grad():
        layer.weight[1, :4, 0, 2] = 1.0
    group = 1 * 9 * 2 + 0 * 3 * 2 + 2 * 2 + 0  # (output, kernel row, kernel column, group)
    with pytest.raises(
        CheckpointError, match=rf"'layer1\.0\.conv2' is not 2:4: 1 of 144 .*group {group} has 4"
    ):
        check_nm(net.state_dict())
    with pytest.raises(ConfigError, match="is no N:M pattern"):
        check_nm(net.state_dict(), "block8")
    with pytest.raises(CheckpointError, match="no masks"):
        check_nm(encoder(width=8).state_dict())


def test_nm_masks_are_checked_after_loading(tmp_path):
    """The checkpoint says 2:4 and its masks are something else."""
    from solo.checkpoints.loading import load_encoder

    goal = {"sparse_state": {"goal": {"granularity": "2:4"}}}
    good = {"state_dict": {f"backbone.{k}": v for k, v in nm_net().state_dict().items()}, **goal}
    load_encoder(encoder(width=8), good)
    bad = {"state_dict": {f"backbone.{k}": v for k, v in pruned().state_dict().items()}, **goal}
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1.*granularity=2:4"):
        load_encoder(encoder(width=8), bad)


def test_semi_structured_needs_a_gpu():
    from sparse_ext.export import semi_structured

    with pytest.raises(ConfigError, match=r"compute capability 8\.0.*on 'cpu'"):
        semi_structured(nm_net())


@pytest.mark.gpu
def test_semi_structured_linears_equal_dense_ones():
    from sparse_ext.export import semi_structured

    net = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64)).cuda().half()
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.view(-1, 4)[:, 1:3] = 0
    x = torch.randn(32, 128, device="cuda").half()
    before = net(x)
    assert semi_structured(net) == ["0", "2"]
    torch.testing.assert_close(net(x), before, rtol=1e-2, atol=1e-2)
