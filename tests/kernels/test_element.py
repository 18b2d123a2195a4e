# SPDX-License-Identifier: MIT
"""The element-wise sparse convolution against torch's dense one."""

import os
import shutil
import signal
import sys

import pytest
import torch
from torch.nn import functional as F

from sparse_ext.kernels.element import geometry, native
from sparse_ext.kernels.element import plan as plans
from sparse_ext.kernels.element.function import (
    both_gradients,
    element_conv2d,
    input_gradient,
    native_type,
    products,
    weight_gradient,
)
from sparse_ext.kernels.element.lanes import empty_lanes, from_lanes, in_lanes, to_lanes
from sparse_ext.kernels.element.plan import Kept, Plan
from sparse_ext.kernels.element.tiles import Extent, Machine, cut
from sparse_ext.kernels.plan import Window

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not native.variant() or not shutil.which("c++"), reason="needs AVX2 and a C++ compiler"
    ),
]
VARIANTS = list(native.VARIANTS)[list(native.VARIANTS).index(native.variant() or "avx2") :]
# batch, inputs, outputs, rows, columns, kernel, stride, padding, dilation, sparsity, bias
CASES = {
    "3x3": (16, 13, 21, 9, 7, (3, 3), 1, 1, 1, 0.9, True),
    "nothing kept": (32, 13, 21, 5, 7, (3, 3), 1, 1, 1, 1.0, True),
    "everything kept": (17, 6, 9, 5, 7, (3, 3), 1, 1, 1, 0.0, True),
    "one weight": (20, 6, 9, 5, 7, (3, 3), 1, 1, 1, 0.999, False),
    "stride 2, odd sides": (32, 24, 40, 11, 10, (3, 3), 2, 1, 1, 0.7, False),
    "stride 2, batch 3": (3, 24, 40, 11, 10, (3, 3), 2, 1, 1, 0.7, True),
    "large maps": (16, 6, 5, 34, 33, (3, 3), 1, 1, 1, 0.6, False),
    "many channels": (50, 70, 130, 5, 5, (3, 3), 1, 1, 1, 0.9, False),
    "small maps": (64, 16, 8, 2, 2, (3, 3), 1, 1, 1, 0.5, False),
    "one pixel": (33, 16, 8, 1, 1, (3, 3), 1, 1, 1, 0.5, False),
    "1x1 stride 2": (16, 24, 40, 8, 8, (1, 1), 2, 0, 1, 0.7, False),
    "1x1": (18, 24, 40, 8, 8, (1, 1), 1, 0, 1, 0.7, True),
    "1x1, odd number of pixels": (3, 24, 40, 3, 5, (1, 1), 1, 0, 1, 0.7, True),
    "dilation and stride": (32, 8, 8, 11, 10, (3, 3), 2, 1, 3, 0.4, False),
    "dilation, batch 1": (1, 8, 8, 12, 10, (3, 3), 1, 2, 2, 0.4, False),
    "stride beyond the kernel": (19, 8, 8, 9, 8, (2, 2), 3, 0, 1, 0.4, False),
    "7x7 stem": (16, 3, 8, 30, 31, (7, 7), 2, 3, 1, 0.0, False),
    "5x3, two strides": (5, 8, 8, 6, 9, (5, 3), (2, 1), (2, 0), 1, 0.6, True),
    "padding beyond the kernel": (16, 8, 8, 4, 4, (1, 1), 1, 2, 1, 0.0, True),
    "batch 1": (1, 16, 24, 17, 17, (3, 3), 1, 1, 1, 0.8, True),
    "batch 1, small maps": (1, 64, 48, 5, 5, (3, 3), 1, 1, 1, 0.9, True),
    "batch 7": (7, 16, 24, 9, 9, (3, 3), 1, 1, 1, 0.8, True),
    "batch of a group and a bit": (49, 8, 12, 9, 9, (3, 3), 1, 1, 1, 0.8, False),
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def problem(case):
    n, inputs, outputs, rows, columns, kernel, stride, padding, dilation, sparsity, bias = case
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    weight = normal(outputs, inputs, *kernel)
    mask = torch.rand(weight.shape, generator=generator) >= sparsity
    if sparsity == 0.999:
        mask.zero_()
        mask[3, 2, 0, 1] = True
    window = Window(pair(stride), pair(padding), pair(dilation))
    x = normal(n, inputs, rows, columns)
    return x, weight * mask, normal(outputs) if bias else None, (mask, window)


def dense(x, weight, bias, window):
    return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)


def results(convolve, x, weight, bias, grad):
    leaves = [t if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
    out = convolve(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(t.grad for t in leaves if t is not None)]


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    """One of the sets of vector instructions that this processor has."""
    real = native.library
    chosen = real(request.param)
    for module in ("lanes", "plan", "function"):
        monkeypatch.setattr(f"sparse_ext.kernels.element.{module}.library", lambda: chosen)
    return request.param


def close(found, wanted, tolerance):
    scale = max(1e-3, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "lanes", "strided"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_dense_convolution(variant, name, layout):
    """Output, gradient of input and bias; of the weight where it is kept, zero elsewhere."""
    x, weight, bias, (mask, window) = problem(CASES[name])
    grad = torch.randn_like(dense(x, weight, bias, window))
    wanted = results(lambda *t: dense(*t, window), x, weight, bias, grad)
    if layout == "channels_last":
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    elif layout == "lanes":
        x, grad = to_lanes(x), to_lanes(grad)
    elif layout == "strided":
        x = torch.stack([x, x], 4)[..., 0].transpose(2, 3).contiguous().transpose(2, 3)
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    plan = Plan(mask, window, weight.stride())
    found = results(lambda *t: element_conv2d(*t, plan, False), x, weight, bias, grad)
    wanted[2] = wanted[2] * mask
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 1e-5)
    assert found[2].stride() == weight.stride()
    assert in_lanes(found[0])
    assert not found[2][~mask].any()


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_rounds_inputs_and_results_only(variant, name):
    """Products and sums are float32: what is left is one rounding of the result."""
    x, weight, bias, (mask, window) = problem(CASES[name])
    x, weight = x.bfloat16().float(), weight.bfloat16().float()
    grad = torch.randn_like(dense(x, weight, bias, window)).bfloat16().float()
    wanted = results(lambda *t: dense(*t, window), x, weight, bias, grad)
    plan = Plan(mask, window, weight.stride())
    leaves = [t if t is None else t.clone().requires_grad_() for t in (x.bfloat16(), weight, bias)]
    out = element_conv2d(*leaves, plan, False)
    out.backward(grad.bfloat16())
    assert out.dtype == leaves[0].grad.dtype == torch.bfloat16
    close(out.detach().float(), wanted[0], 2**-8)
    close(leaves[0].grad.float(), wanted[1], 2**-8)
    close(leaves[1].grad, wanted[2] * mask, 1e-5)
    if bias is not None:
        close(leaves[2].grad, wanted[3], 1e-5)


def test_weights_of_bfloat16_passes_are_rounded_to_the_nearest():
    x, _, _, (mask, window) = problem(CASES["3x3"])
    weight = torch.randn(mask.shape) * mask
    plan = Plan(mask, window, weight.stride())
    found = products(x.bfloat16(), weight, plan).float()
    exact = dense(x.bfloat16().double(), weight.bfloat16().double(), None, window).float()
    if native_type(torch.bfloat16) == torch.bfloat16:
        close(found, exact, 2**-8)


@pytest.mark.parametrize("name", ["3x3", "stride 2, odd sides", "1x1", "batch 7"])
def test_dense_weight_gradient_on_request(name):
    x, weight, bias, (mask, window) = problem(CASES[name])
    grad = torch.randn_like(dense(x, weight, bias, window))
    wanted = results(lambda *t: dense(*t, window), x, weight, bias, grad)
    plan = Plan(mask, window, weight.stride())
    found = results(lambda *t: element_conv2d(*t, plan, True), x, weight, bias, grad)
    close(found[2], wanted[2], 1e-5)
    assert found[2][~mask].abs().max() > 0.1


def test_finite_differences_in_float64_of_what_it_must_equal():
    """The masked dense convolution, which every other test compares with."""
    x, weight, _, (mask, window) = problem((2, 4, 5, 6, 5, (3, 3), 2, 1, 1, 0.5, False))
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    assert torch.autograd.gradcheck(lambda x, w: dense(x, w * mask, None, window), leaves)


def test_epilogue_adds_bias_and_residual_and_rectifies():
    for name in ("3x3", "batch 7", "many channels", "1x1"):
        for kind in (torch.float32, torch.bfloat16):
            x, weight, _, (mask, window) = problem(CASES[name])
            x = x.to(kind)
            scale, bias = torch.rand(len(weight)) + 0.5, torch.randn(len(weight))
            plan = Plan(mask, window, weight.stride())
            plain = dense(x.float(), weight.to(kind).float(), None, window)
            plain = plain * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)
            residual = torch.randn_like(plain).to(kind)
            found = products(x, weight, plan, scale, bias, residual, relu=True)
            close(found.float(), F.relu(plain + residual.float()), 1e-5 if found.dtype ==
                  torch.float32 and kind == torch.float32 else 2**-8)  # fmt: skip


def test_threads_do_not_change_the_result_of_a_pass():
    x, weight, _, (mask, window) = problem(CASES["many channels"])
    plan = Plan(mask, window, weight.stride())
    grad = torch.randn_like(dense(x, weight, None, window))

    def run():
        return results(lambda *t: element_conv2d(*t, plan, False), x, weight, None, grad)

    one = run()
    torch.set_num_threads(3)  # conftest sets it back
    three, again = run(), run()
    for a, b in zip(three, again, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one[0], three[0])
    assert torch.equal(one[1], three[1])
    close(one[2], three[2], 1e-5)


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (6, 4), (1, 9)])
@pytest.mark.parametrize("blocks", [(1, 16), (5, 16), (13, 40)])
def test_however_a_pass_is_cut(tile, blocks, monkeypatch):
    x, weight, _, (mask, window) = problem((32, 13, 40, 12, 9, (3, 3), 1, 1, 1, 0.8, False))
    grad = torch.randn_like(dense(x, weight, None, window))
    wanted = results(lambda *t: dense(*t, window), x, weight, None, grad)
    real = geometry.cut

    def chosen(extent, lanes, machine):
        found = real(extent, lanes, machine)
        strips, coltiles = -(-extent.rows // tile[0]), -(-extent.cols // tile[1])
        sides = -(-extent.rows // strips) * -(-extent.cols // coltiles)
        if sides * lanes // machine.width > machine.capacity:
            return found
        return type(found)(strips, coltiles, False, min(blocks[0], extent.channels), blocks[1], 0)

    monkeypatch.setattr(geometry, "cut", chosen)
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        plan = Plan(mask, window, weight.stride())
        leaves = [t.clone().requires_grad_() for t in (x.to(kind), weight)]
        out = element_conv2d(*leaves, None, plan, False)
        out.backward(grad.to(kind))
        found = (out.detach().float(), leaves[0].grad.float(), leaves[1].grad)
        for a, b in zip(found, (*wanted[:2], wanted[2] * mask), strict=True):
            close(a, b, tolerance)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (5, 3, 8, 1), (16, 65, 3, 3), (70, 9, 33, 2)])
def test_layouts_change_no_value(shape, kind, variant):
    x = torch.randn(shape).to(kind)
    for form in (torch.contiguous_format, torch.channels_last):
        lanes = to_lanes(x.contiguous(memory_format=form))
        assert in_lanes(lanes)
        assert torch.equal(lanes, x)
        assert lanes.permute(1, 2, 3, 0).is_contiguous()
        back = from_lanes(lanes, form)
        assert torch.equal(back, x)
        assert back.is_contiguous(memory_format=form)


def test_torchs_own_operations_stay_in_lanes():
    x = to_lanes(torch.randn(8, 4, 5, 5)).requires_grad_()
    y = F.gelu(torch.relu(x) + x)
    y.backward(torch.ones_like(y))
    assert in_lanes(y)
    assert in_lanes(x.grad)


def test_a_fingerprint_sees_every_byte():
    mask = torch.zeros(64, 3, 3, 3, dtype=torch.bool)
    seen = {plans.fingerprint(mask)}
    for i in range(mask.numel()):
        mask.view(-1)[i] = True
        seen.add(plans.fingerprint(mask))
        mask.view(-1)[i] = False
    assert len(seen) == mask.numel() + 1
    assert plans.fingerprint(mask) in seen


def test_tiles_fit_registers():
    for lanes in (1, 5, 16, 32, 64):
        for side in (1, 2, 5, 9, 34, 112):
            for halo in (0, 2, 6):
                extent = Extent(48, 1, (halo, halo), 64, side, side, 0.1, 9)
                for machine in (Machine(16, 4, 64, 28), Machine(8, 4, 32, 12)):
                    found = cut(extent, lanes, machine)
                    rows, cols = -(-side // found.strips), -(-side // found.coltiles)
                    run = cols * lanes + (rows - 1) * (cols + halo) * lanes * found.flat
                    vectors = -(-run // machine.width) * (1 if found.flat else rows)
                    assert vectors <= machine.capacity


def test_empty_lanes_has_the_shape_asked_for():
    assert empty_lanes((3, 4, 5, 6), torch.float32).shape == (3, 4, 5, 6)


@pytest.mark.parametrize("name", ["stride 2, odd sides", "1x1 stride 2", "many channels", "3x3"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_both_gradients_in_one_pass_are_those_of_two(kind, name, variant):
    x, weight, _, (mask, window) = problem((64, *CASES[name][1:]))
    grad = torch.randn_like(dense(x, weight, None, window)).to(kind)
    x, further = x.to(kind), torch.randn_like(x).to(kind)
    plan = Plan(mask, window, weight.stride())
    kept, sides = Kept(plan, weight), (x.shape[2], x.shape[3])
    computed = native_type(kind)
    assert plan.joins(64, sides, computed) == (variant != "avx2")
    assert not plan.joins(50, sides, computed)  # some images fill no vector
    to_x, to_weight = both_gradients(x, grad, weight, kept, plan, further)
    tolerance = 1e-5 if kind == torch.float32 else 1e-2
    close(to_x.float(), input_gradient(grad, weight, plan, sides, further).float(), tolerance)
    close(to_weight, weight_gradient(x, grad, weight, plan), 1e-5)
    assert not to_weight[~mask].any()


@pytest.fixture
def three_threads():
    """conftest sets torch's number of threads back."""
    torch.set_num_threads(3)
    yield
    native.library().element_team(native._threads_of_torch())


def test_threads_of_torch_and_threads_of_its_own_compute_the_same(three_threads):
    x, weight, _, (mask, window) = problem(CASES["many channels"])
    plan, found = Plan(mask, window, weight.stride()), []
    for team in (native._threads_of_torch(), None):
        native.library().element_team(team)
        out = products(x, weight, plan)
        found.append((out, weight_gradient(x, out, weight, plan)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.skipif(
    sys.platform != "linux" or "OpenMP" not in torch.__config__.show(), reason="no OpenMP"
)
def test_torchs_threads_are_found():
    assert native._threads_of_torch()


def test_threads_work_in_a_forked_process_too():
    x, weight, _, (mask, window) = problem(CASES["3x3"])  # torch itself takes one thread
    plan = Plan(mask, window, weight.stride())
    torch.set_num_threads(3)  # conftest sets it back
    wanted = products(x, weight, plan)
    read, write = os.pipe()
    child = os.fork()  # as data loaders do
    if not child:
        signal.alarm(20)  # instead of waiting for threads that do not exist here
        same = torch.equal(products(x, weight, plan), wanted)
        os.write(write, b"same" if same else b"different")
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 9) == b"same"
    os.close(read)
