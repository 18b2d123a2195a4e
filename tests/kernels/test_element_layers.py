# SPDX-License-Identifier: MIT
"""Layers and networks with the element-wise kernel: when they use it, and that nothing changes."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from solo.backbones import get_builder
from sparse_ext.kernels import needs_dense_gradients
from sparse_ext.kernels.element.blocks import LaneBasicBlock, LaneBottleneck
from sparse_ext.kernels.element.lanes import in_lanes, to_lanes
from sparse_ext.kernels.element.layers import ElementConv2d, ElementLinear, LaneConv2d
from sparse_ext.kernels.element.norm import LaneBatchNorm2d, LaneReLU
from sparse_ext.kernels.element.swap import element_layers, use_element_kernel, use_plain_layers
from sparse_ext.masks.channels.tracing import Channels
from sparse_ext.masks.masked_layers import Masked, MaskedConv2d, mask_module
from tests.kernels.helpers import able, masked_conv, prune, resnet
from tests.kernels.helpers import no_choice_remembered as no_choice_remembered

pytestmark = pytest.mark.unit


def off(found, wanted):
    """Root mean square of the difference over that of what is wanted."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def three(block):
    """A network in float64, in float32 and in float32 with the kernel."""
    exact = resnet(block).double()
    plain = copy.deepcopy(exact).float()
    kernel = copy.deepcopy(plain)
    use_element_kernel(kernel, "element")
    needs_dense_gradients(kernel, False)
    return exact, plain, kernel


def kept(net):
    """Gradients of a network, those of pruned weights as zero."""
    masks = {f"{n}.weight": m.mask for n, m in net.named_modules() if isinstance(m, Masked)}
    return [p.grad * masks.get(name, 1) for name, p in net.named_parameters()]


def as_close(kernel, plain, exact, turned=0.0):
    """Not much farther from the exact result than torch's float32 is.

    A ReLU whose input is zero up to rounding may turn in one of them: that moves gradients by up
    to `turned`.
    """
    assert off(kernel, exact) < 4 * off(plain, exact) + 1e-6 + turned


@able
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_computes_what_it_did(block, training):
    """Outputs, all gradients and running statistics, as close to float64 as torch is."""
    nets = three(block)
    images, aim = torch.randn(16, 3, 16, 16), torch.randn(16, 10)
    for net, kind in zip(nets, (torch.double, torch.float, torch.float), strict=True):
        net.train(training)
        net.inputs = images.to(kind).requires_grad_()
        net.outputs = net(net.inputs)
        (net.outputs * aim.to(kind)).sum().backward()
    exact, plain, kernel = nets
    assert all(layer.used for layer in element_layers(kernel))
    as_close(kernel.outputs, plain.outputs, exact.outputs)
    as_close(kernel.inputs.grad, plain.inputs.grad, exact.inputs.grad, 1e-2)
    flat = [torch.cat([g.flatten().double() for g in kept(net)]) for net in nets]
    as_close(flat[2], flat[1], flat[0], 3e-3)
    buffers = [dict(net.named_buffers()) for net in (kernel, exact)]
    for name, buffer in buffers[1].items():
        torch.testing.assert_close(buffers[0][name].to(buffer.dtype), buffer, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        outputs = [net(images.to(net.conv1.weight.dtype)) for net in (kernel, plain, exact)]
        as_close(*outputs)


@able
def test_hooks_see_what_their_modules_return():
    exact, _, kernel = three(BasicBlock)
    names = ["bn1", "layer1.0.bn1", "layer2.0.conv2", "layer3.0.relu", "layer2.0.downsample.1"]
    images, seen = torch.randn(16, 3, 16, 16), {}
    for net in (exact.eval(), kernel.eval()):
        for name in names:
            net.get_submodule(name).register_forward_hook(
                lambda m, i, o, key=(net, name): seen.update({key: o.detach().clone()})
            )
        with torch.no_grad():
            net(images.to(net.conv1.weight.dtype))
    for name in names:
        assert off(seen[kernel, name], seen[exact, name]) < 1e-5
    assert (seen[kernel, "bn1"] < 0).any()


@able
def test_bfloat16_is_as_close_as_autocast():
    plain = resnet(BasicBlock)
    kernel = copy.deepcopy(plain)
    use_element_kernel(kernel, "element")
    images = torch.randn(32, 3, 16, 16)
    outputs = {}
    for name, net in (("exact", plain), ("autocast", plain), ("kernel", kernel)):
        with torch.autocast("cpu", enabled=name != "exact"):
            outputs[name] = net(images).float()
    assert all(layer.used for layer in element_layers(kernel))
    aside = {name: off(outputs[name], outputs["exact"]) for name in ("autocast", "kernel")}
    assert aside["kernel"] < 1.3 * aside["autocast"]
    outputs["kernel"].sum().backward()
    assert kernel.layer1[0].conv1.weight.grad.dtype == torch.float32


@able
def test_training_goes_the_same_way():
    """Steps of SGD with masks that change in between, as close to float64 as torch is."""
    nets = three(BasicBlock)
    images, aim = torch.randn(16, 3, 16, 16), torch.randn(16, 10)
    for net in nets:
        kind = net.conv1.weight.dtype
        optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            F.mse_loss(net(images.to(kind)), aim.to(kind)).backward()
            for p, grad in zip(net.parameters(), kept(net), strict=True):
                p.grad = grad
            optimizer.step()
            for layer in net.modules():
                if isinstance(layer, Masked):
                    prune(layer, 0.9, seed=step)
    flat = [torch.cat([p.flatten().double() for p in net.parameters()]) for net in nets]
    as_close(flat[2], flat[1], flat[0], 1e-4)


@able
def test_follows_every_change_of_mask_and_weight():
    """Through copy_, new buffers, loading, `.data`, numpy: whatever torch does not count."""
    conv, plain = masked_conv(), nn.Conv2d(16, 24, 3, padding=1)
    use_element_kernel(conv, "element")
    x = torch.randn(16, 16, 6, 6)

    def check():
        plain.weight, plain.bias = conv.weight, conv.bias
        torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)
        assert conv.used

    check()
    prune(conv, 0.5, seed=1)
    conv.weight.data = torch.randn_like(conv.weight) * conv.mask
    check()
    conv.weight.data.mul_(2)
    check()
    version = conv.mask._version
    conv.mask.numpy()[:4] = True
    conv.mask.data[5] = False
    conv.weight.data.copy_(torch.randn_like(conv.weight) * conv.mask)
    assert conv.mask._version == version
    check()
    conv.load_state_dict(masked_conv().state_dict())
    check()
    conv.mask = torch.zeros_like(conv.mask)
    conv.apply_mask()
    check()
    conv.to(memory_format=torch.channels_last)
    conv.mask.fill_(True)
    conv.weight.data.normal_()
    check()
    with torch.inference_mode():
        conv.mask[3] = False
        conv.apply_mask()
        check()


@able
def test_state_copies_and_pickles_are_those_of_a_masked_layer():
    net = nn.Sequential(masked_conv(), nn.BatchNorm2d(24))
    keys = list(net.state_dict())
    use_element_kernel(net, "element")
    x = torch.randn(2, 16, 5, 5)
    first = net.eval()(x)
    assert list(net.state_dict()) == keys
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(twin[0]) is ElementConv2d
        assert "_plan" not in twin[0].__dict__
        assert torch.equal(twin(x), first)
    use_plain_layers(net)
    assert [type(m) for m in net] == [MaskedConv2d, nn.BatchNorm2d]
    own = {"kernel", "dense_gradient", "dense_share", "used", "around", "_plan"}
    assert not own & set(net[0].__dict__)


@able
def test_blocks_and_stem_come_and_go():
    net = resnet(BasicBlock)
    use_element_kernel(net)
    assert type(net.layer1[0]) is LaneBasicBlock
    assert [type(m) for m in (net.conv1, net.bn1, net.relu)] == [
        LaneConv2d,
        LaneBatchNorm2d,
        LaneReLU,
    ]
    use_plain_layers(net)
    assert type(net.layer1[0]) is BasicBlock
    assert {type(m) for m in (net.conv1, net.relu)} == {nn.Conv2d, nn.ReLU}
    other = resnet(Bottleneck)
    use_element_kernel(other)
    assert type(other.layer1[0]) is LaneBottleneck


@able
@pytest.mark.parametrize("shape", [(40,), (3, 7, 40), (16, 40), (33, 40), (2, 4, 4, 40)])
def test_linear_layers_and_what_follows_in_their_layout(shape):
    torch.manual_seed(0)
    mlp = nn.Sequential(
        prune(mask_module(nn.Linear(40, 56))), nn.GELU(), prune(mask_module(nn.Linear(56, 40)))
    )
    twin = copy.deepcopy(mlp)
    use_element_kernel(twin, "element")
    assert type(twin[0]) is ElementLinear
    needs_dense_gradients(twin, False)
    x = torch.randn(shape)
    for net in (mlp, twin):
        net.x = x.clone().requires_grad_()
        net.y = net(net.x)
        net.y.square().sum().backward()
    torch.testing.assert_close(twin.y, mlp.y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(twin.x.grad, mlp.x.grad, rtol=1e-5, atol=1e-5)
    for a, b in zip(twin, mlp, strict=True):
        if isinstance(a, Masked):
            wanted = b.weight.grad * b.mask
            torch.testing.assert_close(a.weight.grad * a.mask, wanted, rtol=1e-5, atol=1e-4)
    assert twin[0].used == (len(shape) > 1)


@able
def test_inputs_that_do_not_fit_are_torchs_own_errors():
    conv, linear = masked_conv(), mask_module(nn.Linear(8, 8))
    use_element_kernel(nn.Sequential(conv, linear), "element")
    with pytest.raises(RuntimeError, match="expected input"):
        conv(torch.randn(1, 8, 5, 5))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.randn(2, 7))
    conv.padding = (0, 0)
    with pytest.raises(RuntimeError, match="Kernel size"):
        conv(torch.randn(1, 16, 2, 2))


@able
def test_non_finite_values_stay_visible():
    conv = prune(mask_module(nn.Conv2d(16, 24, 3, padding=1)), 0.2)
    use_element_kernel(conv, "element")
    x = torch.randn(16, 16, 6, 6)
    x[3, 2, 1, 4] = float("nan")
    x[5, 2, 1, 4] = float("inf")
    found, others = conv(x), [i for i in range(16) if i not in (3, 5)]
    assert found[3].isnan().any()
    assert not found[5].isfinite().all()
    assert found[others].isfinite().all()
    bn = LaneBatchNorm2d(24)
    assert bn(to_lanes(found)).isnan().any()


@able
def test_gradients_of_pruned_weights_until_told_otherwise():
    conv = masked_conv()
    use_element_kernel(conv, "element")
    for needed in (True, False, True):
        if not needed or conv.weight.grad is not None:
            needs_dense_gradients(conv, needed)
        conv.weight.grad = None
        conv(torch.randn(16, 16, 6, 6)).square().sum().backward()
        assert bool(conv.weight.grad[~conv.mask].any()) is needed


@able
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("n", [2, 16, 17])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_torchs(n, affine, momentum):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5, affine=affine, momentum=momentum)
    mine = copy.deepcopy(plain)
    mine.__class__ = LaneBatchNorm2d
    for turn in range(3):
        x = torch.randn(n, 5, 3, 7) * (turn + 1) + 3
        for net, kind in ((plain, x), (mine, to_lanes(x))):
            net.x = kind.clone().requires_grad_()
            net.zero_grad()
            net.y = net(net.x)
            net.y.pow(3).sum().backward()
        assert in_lanes(mine.y)
        torch.testing.assert_close(mine.y, plain.y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine.x.grad, plain.x.grad, rtol=1e-3, atol=1e-4)
        for a, b in zip(mine.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)
    for a, b in zip(mine.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval()(to_lanes(x)), plain.eval()(x), rtol=1e-5, atol=1e-5)


# -- choosing ----------------------------------------------------------------------------------


@able
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny"])
def test_channels_that_go_together_are_those_of_the_plain_network(name):
    def channels(net):
        spaces = Channels(net).spaces
        return {(frozenset(s.producers), frozenset(s.consumers), s.size, s.fixed) for s in spaces}

    size = {"img_size": 32, "patch_size": 8} if name == "vit_tiny" else {}
    net = get_builder(name)(None, **size)
    for module in net.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            mask_module(module)
    wanted = channels(net)
    use_element_kernel(net, later=True)
    assert element_layers(net)
    assert channels(net) == wanted
