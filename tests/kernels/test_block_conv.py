# SPDX-License-Identifier: MIT
"""The block-sparse convolution against torch's dense one, in both backends."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from sparse_ext.kernels import Plan, block_conv2d, build
from sparse_ext.kernels.plan import Window
from sparse_ext.masks.granularity import Block

pytestmark = pytest.mark.unit

COMPILER = shutil.which("c++") and shutil.which("ninja")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler and ninja")
wide = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="'compiled' is that of AVX2 already"
)
BACKENDS = [
    "reference",
    pytest.param("compiled", marks=needs_compiler),
    pytest.param("avx2", marks=[needs_compiler, wide]),
]
# batch, inputs, outputs, rows, columns, kernel, stride, padding, dilation, kept share, bias
CASES = {
    "3x3": (3, 16, 24, 8, 8, (3, 3), 1, 1, 1, 0.2, False),
    "3x3 stride 2": (5, 16, 16, 8, 8, (3, 3), 2, 1, 1, 0.3, False),
    "odd sides, stride 2": (2, 16, 8, 7, 9, (3, 3), 2, 1, 1, 0.4, True),
    "1x1": (2, 24, 16, 5, 6, (1, 1), 1, 0, 1, 0.4, False),
    "1x1 stride 2": (9, 16, 32, 8, 8, (1, 1), 2, 0, 1, 0.4, False),
    "ragged channels": (2, 13, 21, 6, 5, (3, 3), 1, 1, 1, 0.4, True),
    "fewer than 8 channels": (2, 3, 5, 6, 6, (3, 3), 2, 1, 1, 0.7, True),
    "no padding": (2, 8, 8, 6, 7, (3, 3), 1, 0, 1, 0.5, False),
    "padding beyond the kernel": (1, 8, 8, 4, 4, (1, 1), 1, 2, 1, 1.0, True),
    "stride beyond the kernel": (2, 8, 16, 9, 8, (2, 2), 3, 0, 1, 0.6, False),
    "dilation": (2, 8, 16, 9, 10, (3, 3), 1, 2, 2, 0.4, False),
    "dilation and stride": (2, 8, 8, 11, 10, (3, 3), 2, 1, 3, 0.6, False),
    "5x3 kernel": (2, 8, 8, 7, 8, (5, 3), 1, 1, 1, 0.5, False),
    "batch 1": (1, 16, 16, 4, 4, (3, 3), 1, 1, 1, 0.3, False),
    "one pixel": (6, 16, 16, 1, 1, (3, 3), 1, 1, 1, 0.5, False),
    "wide rows": (1, 8, 8, 3, 35, (3, 3), 1, 1, 1, 0.5, False),
    "many rows": (2, 64, 8, 70, 12, (3, 3), 1, 1, 1, 0.2, False),  # an image in many strips
    "strips and stride": (3, 8, 16, 29, 6, (3, 3), 2, 1, 1, 0.4, True),
    "strips and dilation": (2, 8, 8, 23, 5, (3, 3), 1, 4, 4, 0.6, False),
    "more images than lanes": (19, 16, 16, 4, 4, (3, 3), 1, 1, 1, 0.3, True),
    "many images, stride 2": (33, 8, 16, 6, 5, (3, 3), 2, 1, 1, 0.4, False),
    "nothing kept": (2, 8, 16, 5, 5, (3, 3), 1, 1, 1, 0.0, True),
    "everything kept": (2, 16, 8, 5, 5, (3, 3), 1, 1, 1, 1.0, False),
}


@pytest.fixture
def kernel(request, monkeypatch):
    """The name of a backend; `avx2` is the compiled one with narrower vectors."""
    if request.param != "avx2":
        yield request.param
        return
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    build.library.cache_clear()
    assert "-mavx2" in build.flags()
    yield "compiled"
    build.library.cache_clear()


def problem(case, dtype=torch.float32):
    n, inputs, outputs, rows, columns, kernel, stride, padding, dilation, share, bias = case
    x = torch.randn(n, inputs, rows, columns, dtype=dtype)
    weight = torch.randn(outputs, inputs, *kernel, dtype=dtype)
    blocks = Block(8, pad=True)
    kept = torch.rand(blocks.n_groups(tuple(weight.shape))) < share
    mask = blocks.expand(kept, weight)
    window = Window((stride, stride), (padding, padding), (dilation, dilation))
    bias = torch.randn(outputs, dtype=dtype) if bias else None
    return x, weight * mask, bias, mask, Plan(mask, window)


def dense(x, weight, bias, plan):
    window = plan.window
    return F.conv2d(x, weight, bias, window.stride, window.padding, window.dilation)


def results(convolve, x, weight, bias, grad):
    leaves = [t if t is None else t.clone().requires_grad_() for t in (x, weight, bias)]
    out = convolve(*leaves)
    out.backward(grad)
    return [out.detach(), *(t.grad for t in leaves if t is not None)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", BACKENDS, indirect=True)
def test_equals_the_dense_convolution(kernel, name, layout):
    """Output, gradient of input and bias; of the weight where blocks are kept, zero elsewhere."""
    x, weight, bias, mask, plan = problem(CASES[name])
    grad = torch.randn_like(dense(x, weight, bias, plan))
    if layout == "channels_last":
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    elif layout == "strided":
        x = torch.stack([x, x], 4)[..., 0].transpose(2, 3).contiguous().transpose(2, 3)
        grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
    wanted = results(lambda *t: dense(*t, plan), x, weight, bias, grad)
    found = results(lambda *t: block_conv2d(*t, plan, kernel, False), x, weight, bias, grad)
    wanted[2] = wanted[2] * mask
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.abs().max())))
    assert found[2].stride() == weight.stride()


@pytest.mark.parametrize("kernel", BACKENDS, indirect=True)
def test_dense_weight_gradient_on_request(kernel):
    x, weight, bias, mask, plan = problem(CASES["odd sides, stride 2"])
    grad = torch.randn_like(dense(x, weight, bias, plan))
    wanted = results(lambda *t: dense(*t, plan), x, weight, bias, grad)
    found = results(lambda *t: block_conv2d(*t, plan, kernel, True), x, weight, bias, grad)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-5, atol=1e-5)
    assert found[2][~mask].abs().max() > 0.1


@pytest.mark.parametrize("name", ["odd sides, stride 2", "ragged channels", "dilation and stride"])
def test_reference_against_finite_differences(name):
    _, inputs, outputs, rows, columns, *rest = CASES[name]
    small = (1, inputs, min(outputs, 9), min(rows, 8), min(columns, 8), *rest)
    x, weight, bias, mask, plan = problem(small, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight) if t is not None]

    def convolve(x, weight):
        return block_conv2d(x, weight * mask, bias, plan, "reference", False)

    assert torch.autograd.gradcheck(convolve, leaves, fast_mode=True)


@pytest.mark.skipif(not COMPILER, reason="needs a C++ compiler and ninja")
def test_threads_do_not_change_the_result():
    x, weight, bias, _, plan = problem(CASES["many rows"])
    grad = torch.randn_like(dense(x, weight, bias, plan))

    def run():
        return results(lambda *t: block_conv2d(*t, plan, "compiled", False), x, weight, bias, grad)

    one = run()
    torch.set_num_threads(3)  # conftest sets it back
    three, again = run(), run()
    for a, b in zip(three, again, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_a_weight_of_another_memory_format():
    x, weight, _, mask, plan = problem(CASES["5x3 kernel"])
    odd = weight.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    grad = torch.randn_like(dense(x, weight, None, plan))
    wanted = results(lambda *t: dense(*t, plan), x, weight, None, grad)
    for backend in ("reference", *(["compiled"] if COMPILER else [])):
        found = results(lambda *t, b=backend: block_conv2d(*t, plan, b, False), x, odd, None, grad)
        for a, b in zip(found, (*wanted[:2], wanted[2] * mask), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_plan_counts_blocks_with_any_weight():
    mask = torch.zeros(16, 20, 3, 3, dtype=torch.bool)
    mask[9, 17, 2, 0] = True  # in the ragged last column of blocks
    plan = Plan(mask, Window((2, 2), (1, 1)))
    assert plan.kept.tolist() == [[2, 0, 1, 2]]
    assert plan.sparsity == 1 - 1 / (2 * 3 * 9)
    # row 2 - 1 = 1 = 0 * 2 + 1, column 0 - 1 = -1 = -1 * 2 + 1: phase (1, 1), the only one in use
    assert plan.forward.phases.tolist() == [[1, 1]]
    assert plan.forward.entries.tolist() == [[2, 1, 0, -1, 0]]
    assert plan.backward.entries.tolist() == [[1, 0, 0, 1, 0]]
    assert plan.backward.ranges.tolist() == [0] * 12 + [1]
    assert plan.coordinates.tolist() == [[8, 16, 6]]
