# SPDX-License-Identifier: MIT
"""Half of the channels of small members of each family: masked at random, removed, compared."""

import copy
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from timm.models import metaformer
from torch import nn
from torch.nn import functional as F

from solo.errors import CheckpointError
from sparse_ext.export.survey import examine, shake
from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.channels.widths import resize_
from tests.export.nets import images

pytestmark = pytest.mark.unit
tv = torchvision.models


def vit_of_timm(**kwargs):
    plain = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return timm.models.VisionTransformer(**plain, num_classes=5, mlp_ratio=2, **kwargs)


def eva():
    plain = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 3}
    special = {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True}
    return timm.models.Eva(**plain, num_classes=5, **special)


FAMILIES = {
    "timm vit": lambda: vit_of_timm(init_values=0.1, qk_norm=True),
    "timm deit3": lambda: vit_of_timm(init_values=0.1, no_embed_class=True),
    "timm eva": eva,
    "timm swinv2": lambda: timm.models.SwinTransformerV2(
        img_size=32, window_size=4, embed_dim=12, depths=(2, 1), num_heads=(3, 6), num_classes=5
    ),
    "timm swin": lambda: timm.models.SwinTransformer(
        img_size=32, window_size=4, embed_dim=12, depths=(2, 1), num_heads=(3, 6), num_classes=5
    ),
    "timm convnextv2": lambda: timm.models.ConvNeXt(
        depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), use_grn=True, ls_init_value=None, num_classes=5
    ),
    "timm caformer": lambda: metaformer.MetaFormer(
        depths=(1, 1), dims=(8, 64), token_mixers=(metaformer.SepConv, metaformer.Attention),
        norm_layers=(metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias),
        num_classes=5,
    ),
    "timm poolformer": lambda: metaformer.MetaFormer(
        depths=(1, 1), dims=(8, 16), token_mixers=metaformer.Pooling, num_classes=5
    ),
    "timm mixer": lambda: timm.models.MlpMixer(
        img_size=16, patch_size=8, embed_dim=16, num_blocks=2, num_classes=5
    ),
    "timm ghostnet": lambda: timm.create_model("ghostnet_050", num_classes=5),
    "timm resnest": lambda: timm.create_model("resnest14d", stem_width=4, num_classes=5),
    "vit": lambda: tv.VisionTransformer(16, 8, 2, 3, 24, 32, num_classes=5),
    "swin": lambda: tv.SwinTransformer([4, 4], 12, [2, 1], [3, 6], [4, 4], num_classes=5),
    "swin v2": lambda: tv.SwinTransformer(
        [4, 4], 12, [2, 1], [3, 6], [4, 4], num_classes=5,
        block=tv.swin_transformer.SwinTransformerBlockV2,
        downsample_layer=tv.swin_transformer.PatchMergingV2,
    ),
    "convnext": lambda: tv.ConvNeXt(
        [tv.convnext.CNBlockConfig(8, 16, 1), tv.convnext.CNBlockConfig(16, None, 1)], num_classes=5
    ),
    "mobilenet v3": lambda: tv.mobilenet_v3_small(width_mult=0.25, num_classes=5),
    "shufflenet": lambda: tv.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 32], num_classes=5),
    "resnext": lambda: tv.ResNet(
        tv.resnet.Bottleneck, [1, 1, 1, 1], groups=4, width_per_group=4, num_classes=5
    ),
    "densenet": lambda: tv.DenseNet(4, (2, 2), 8, num_classes=5),
}  # fmt: skip


def network(name, seed=0):
    torch.manual_seed(seed)
    net = FAMILIES[name]().eval()
    shake(net)
    return net


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_the_channels_go_exactly(name):
    found = examine(network(name))
    assert found["difference"] <= 1e-5
    assert found["removed"] > 0.39, found  # layers of four channels keep one for its constants
    before, after = found["parameters"]
    assert after < 0.75 * before


class Toy(nn.Module):
    """Two layers with one operation between them."""

    def __init__(self, operation, inner=12, **modules):
        super().__init__()
        self.first, self.last = nn.Linear(6, inner), nn.Linear(modules.pop("width", inner), 3)
        self.operation = operation
        for key, module in modules.items():
            setattr(self, key, module)

    def forward(self, x):
        return self.last(self.operation(self, self.first(x)))


OPERATIONS = {
    "layer norm": (lambda n, x: n.norm(x), {"norm": nn.LayerNorm(12)}),
    "product with itself": (lambda n, x: x * torch.sigmoid(x), {}),
    "gate": (lambda n, x: F.glu(x), {"width": 6}),
    "chunk": (lambda n, x: x.chunk(2, -1)[0] * x.chunk(2, -1)[1], {"width": 6}),
    "cat": (lambda n, x: torch.cat((x, x.relu()), -1), {"width": 24}),
    "stack and flatten": (lambda n, x: torch.stack((x, -x), 1).sum(1).relu(), {}),
    "permute": (lambda n, x: x.view(-1, 3, 4).transpose(1, 2).flatten(1), {}),
    "norm of a vector": (lambda n, x: F.normalize(x, dim=-1), {}),
    "where": (lambda n, x: torch.where(x > 0, x, 0.1 * x), {}),
    "scale": (lambda n, x: x * n.gamma, {"gamma": nn.Parameter(torch.rand(12) + 0.5)}),
    "clamp": (lambda n, x: x.clamp(-1, 1), {}),
    "roll": (lambda n, x: x.roll(1, -1), {}),
    "softmax": (lambda n, x: x.softmax(-1), {}),
    "sum over all": (lambda n, x: x + x.sum(-1, keepdim=True), {}),
    "maximum over all": (lambda n, x: x - x.amax(-1, keepdim=True), {}),
    "sort": (lambda n, x: x.sort(-1).values, {}),
    "cumulative sum": (lambda n, x: x.cumsum(-1), {}),
    "table look-up": (lambda n, x: x[:, [3, 1, 2, 0]], {"width": 4}),
}
STAY = {"roll", "softmax", "sum over all", "maximum over all", "sort", "cumulative sum"}


def toy(name):
    torch.manual_seed(1)
    operation, modules = OPERATIONS[name]
    net = Toy(operation, **copy.deepcopy(modules))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_unit_goes_by_itself_and_what_cannot_go_is_named(name):
    """Brute force: every unit that is said to be one is emptied alone and removed."""
    channels = Channels(toy(name))
    fixed = [s for s in channels.spaces if s.fixed and "first" in s.producers]
    if name in STAY:
        assert fixed
        assert not channels.untraced
        assert not [s for s in channels.spaces if not s.fixed]
        return
    x = torch.randn(5, 6)
    for unit in range(channels.units):
        net, gone = toy(name), torch.zeros(channels.units, dtype=torch.bool)
        gone[unit] = True
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for key, axes in channels.keep(gone.numpy()).items():
                for axis, kept in enumerate(axes):
                    if kept is not None:
                        off = torch.ones(parameters[key].shape[axis], dtype=torch.bool)
                        off[torch.from_numpy(kept)] = False
                        parameters[key].index_fill_(axis, off.nonzero()[:, 0], 0)
            before = net(x)
            report = shrink_([net])
            assert report.removed == 1
            torch.testing.assert_close(
                net(x), before, rtol=0, atol=1e-5 * float(before.abs().max())
            )


@pytest.mark.parametrize("name", ["vit", "timm eva", "swin v2", "timm convnextv2", "resnext"])
def test_slim_networks_are_rebuilt_from_their_tensors_alone(name):
    """Widths, heads, groups and norms of the full width, without tracing."""
    net = network(name)
    examine(net)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith(".mask")}
    again = network(name, seed=7)
    resize_(again, state)
    again.load_state_dict(state)
    x = images(Channels(net).input_shape[-1], 2)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), net(x))
    with pytest.raises(CheckpointError, match="slimmed from another architecture"):
        resize_(network("mobilenet v3" if name == "vit" else "vit"), _renamed(state))


def _renamed(state):
    """A tensor that is larger than in any network."""
    return dict.fromkeys([*state, "conv_proj.bias", "features.0.0.weight"], torch.ones(9999, 1))


def test_slim_norms_are_copied_and_opened_in_another_process(tmp_path):
    """Their classes are made at run time: pickles name those that everyone has."""
    nets = [network(name) for name in ("vit", "timm convnextv2")]
    for net in nets:
        examine(net)
    torch.save(nets, tmp_path / "nets.pt")
    x = [images(Channels(net).input_shape[-1], 2) for net in nets]
    with torch.no_grad():
        outputs = [net(each) for net, each in zip(nets, x, strict=True)]
        for net, each, out in zip(copy.deepcopy(nets), x, outputs, strict=True):
            assert torch.equal(net(each), out)
    torch.save((x, outputs), tmp_path / "io.pt")
    code = (
        "import sys, torch; folder = sys.argv[1]; torch.set_grad_enabled(False)\n"
        "nets = torch.load(folder + '/nets.pt', weights_only=False)\n"
        "x, outputs = torch.load(folder + '/io.pt')\n"
        "assert all(torch.allclose(n(a), b, atol=1e-5) for n, a, b in zip(nets, x, outputs))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-2000:]


def test_slimming_goes_on_where_it_ended():
    """Norms remember the width that the full network had."""
    net = network("timm vit")
    x, channels = images(16, 2), Channels(net)
    for seed in (0, 1):
        channels = Channels(net)
        units = torch.zeros(channels.units, dtype=torch.bool)
        for space in channels.spaces:
            if not space.fixed:
                units[torch.as_tensor(space.units[seed : space.size // 2 : 2])] = True
        parameters = dict(net.named_parameters())
        with torch.no_grad():
            for key, axes in channels.keep(units.numpy()).items():
                for axis, kept in enumerate(axes):
                    if kept is not None and key in parameters:
                        off = torch.ones(parameters[key].shape[axis], dtype=torch.bool)
                        off[torch.from_numpy(kept)] = False
                        parameters[key].index_fill_(axis, off.nonzero()[:, 0], 0)
            before = net(x)
            assert shrink_([net]).removed == int(units.sum())
            torch.testing.assert_close(net(x), before, rtol=1e-5, atol=1e-5)


def test_a_network_that_needs_values_is_named():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.a(x)
            return self.b(x) if x.sum() > 0 else self.b(-x)

    channels = Channels(Branching())
    assert "Branching" in channels.untraced
    assert not shrink_([Branching()]).removed


@torch.library.custom_op("solo_tests::mirrored", mutates_args=())
def mirrored(x: torch.Tensor) -> torch.Tensor:
    """An operator that nobody knows, and that has no rule for fake tensors."""
    return torch.from_numpy(x.numpy()[:, ::-1].copy())


def test_an_unknown_operator_keeps_its_channels_and_the_rest_can_go():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.c, self.d = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = mirrored(self.b(self.a(x).relu()))
            return self.d(self.c(x).relu()).mean((2, 3))

    channels = Channels(Net())
    spaces = {s.name: s for s in channels.spaces}
    assert not channels.untraced
    assert "mirrored()" in spaces["b"].fixed
    assert not spaces["a"].fixed
    assert not spaces["c"].fixed
    found = examine(Net())
    assert found["difference"] <= 1e-5
    assert found["removed"] > 0.3


@pytest.mark.parametrize("name", ["vit", "timm convnextv2", "timm poolformer"])
def test_norms_of_the_full_width_are_one_node_in_onnx(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    assert runtime
    from sparse_ext.export.onnx import check_onnx, export_onnx

    net = network(name)
    assert examine(net)["ok"]
    size = Channels(net).input_shape[-1]
    path = export_onnx(net, tmp_path / "slim.onnx", size)
    assert check_onnx(net, path, size) < 1e-5
