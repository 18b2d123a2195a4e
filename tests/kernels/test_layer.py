# SPDX-License-Identifier: MIT
"""Layers that skip pruned blocks: when they do, mask changes, missing compilers, training."""

import copy
import pickle
import shutil

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from sparse_ext.config.sections import build as build_config
from sparse_ext.kernels import (
    BlockConv2d,
    KernelBuildError,
    build,
    layer,
    needs_dense_gradients,
    use_block_kernel,
    use_dense_kernel,
)
from sparse_ext.masks.granularity import Block
from sparse_ext.masks.masked_layers import MaskedConv2d, mask_module
from sparse_ext.training.attach import attach
from tests.pruning.toys import data, toy, trainer

pytestmark = pytest.mark.unit

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja")), reason="needs a C++ compiler and ninja"
)


def masked_conv(kept=0.2, **kwargs):
    conv = mask_module(nn.Conv2d(16, 24, 3, padding=1, **kwargs))
    set_mask(conv, kept)
    return conv


def set_mask(conv, kept, seed=0):
    blocks, generator = Block(8, pad=True), torch.Generator().manual_seed(seed)
    shares = torch.rand(blocks.n_groups(tuple(conv.weight.shape)), generator=generator)
    conv.mask.copy_(blocks.expand(shares <= shares.quantile(kept), conv.weight))
    conv.apply_mask()


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel ran instead of the dense convolution."""
    made, real = [], layer.block_conv2d

    def counted(*args):
        made.append(args)
        return real(*args)

    monkeypatch.setattr(layer, "block_conv2d", counted)
    return made


def test_used_from_the_threshold_on(calls):
    conv = masked_conv(kept=0.3)
    assert use_block_kernel(nn.Sequential(conv), "reference") == ["0"]
    x = torch.randn(2, 16, 6, 6)
    conv(x)
    assert not calls
    set_mask(conv, 0.2)
    conv(x)
    assert len(calls) == 1


def test_follows_every_change_of_mask_and_weight(calls):
    """Also by copy_, by a new buffer, by loading, and of weights through `.data`."""
    conv, plain = masked_conv(), nn.Conv2d(16, 24, 3, padding=1)
    use_block_kernel(conv, "reference")
    x = torch.randn(2, 16, 6, 6)

    def check():
        plain.weight, plain.bias = conv.weight, conv.bias
        torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)

    check()
    weight = torch.randn_like(conv.weight)
    for seed in range(1, 4):
        conv.weight.data = weight.clone()
        set_mask(conv, 0.2, seed)
        check()
    conv.weight.data.mul_(2)
    check()
    other = masked_conv()
    set_mask(other, 0.2, seed=9)
    conv.load_state_dict(other.state_dict())
    check()
    conv.weight.data = weight.clone()
    conv.mask = torch.zeros_like(conv.mask)
    conv.mask[:8, :8, 1] = True
    conv.apply_mask()
    check()
    with torch.inference_mode():
        conv.mask = torch.zeros_like(conv.mask)
        conv.mask[8:16] = True
        conv.weight.data = torch.randn_like(conv.weight) * conv.mask
        conv.min_sparsity = 0.5
        check()
        conv.mask.zero_()
        conv.weight.data.zero_()
        check()
    assert len(calls) == 9


def test_the_plan_is_made_once_per_mask():
    conv = masked_conv()
    use_block_kernel(conv, "reference")
    first = conv.plan()
    assert conv.plan() is first
    conv.mask.logical_not_()
    assert conv.plan() is not first


def test_state_copies_and_pickles_are_those_of_a_masked_layer():
    conv = masked_conv()
    keys = list(conv.state_dict())
    use_block_kernel(conv, "reference")
    conv.plan()
    assert list(conv.state_dict()) == keys
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert type(twin) is BlockConv2d
        assert "_plan" not in twin.__dict__
        x = torch.randn(1, 16, 5, 5)
        assert torch.equal(twin(x), conv(x))
    use_dense_kernel(conv)
    assert type(conv) is MaskedConv2d
    assert not {"backend", "min_sparsity", "dense_gradient", "_plan"} & set(conv.__dict__)


@pytest.mark.parametrize("what", ["double", "bfloat16", "autocast", "unbatched", "empty", "traced"])
def test_dense_convolution_where_the_kernel_is_no_use(what, calls):
    conv = masked_conv()
    use_block_kernel(conv, "reference")
    x = torch.randn(2, 16, 5, 5)
    if what in ("double", "bfloat16"):
        kind = getattr(torch, what)
        assert conv.to(kind)(x.to(kind)).dtype is kind
    elif what == "autocast":
        with torch.autocast("cpu"):
            assert conv(x).dtype is torch.bfloat16
    elif what == "traced":
        assert torch.jit.trace(conv, x, check_trace=False)(x).shape == (2, 24, 5, 5)
    elif what == "unbatched":
        assert conv(x[0]).shape == (24, 5, 5)
    else:
        assert conv(x[:0]).shape == (0, 24, 5, 5)
    assert not calls


def test_inputs_that_do_not_fit_are_torchs_own_errors():
    conv = masked_conv()
    use_block_kernel(conv, "reference")
    with pytest.raises(RuntimeError, match="expected input"):
        conv(torch.randn(1, 8, 5, 5))
    conv.padding = (0, 0)
    with pytest.raises(RuntimeError, match="Kernel size"):
        conv(torch.randn(1, 16, 2, 2))


def test_gradients_of_pruned_weights_until_told_otherwise():
    conv = masked_conv()
    use_block_kernel(conv, "reference")
    for needed in (True, False, True):
        if not needed or conv.weight.grad is not None:
            needs_dense_gradients(conv, needed)
        conv.weight.grad = None
        conv(torch.randn(2, 16, 6, 6)).square().sum().backward()
        assert bool(conv.weight.grad[~conv.mask].any()) is needed


def test_nothing_to_use_it_on():
    with pytest.raises(ConfigError, match="Make the encoder sparse first"):
        use_block_kernel(nn.Sequential(nn.Conv2d(8, 8, 3)))
    grouped = mask_module(nn.Conv2d(16, 16, 3, groups=2))
    circular = mask_module(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ConfigError, match=r"'0': 2 channel groups; '1': padding.*circular"):
        use_block_kernel(nn.Sequential(grouped, circular))
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        use_block_kernel(masked_conv(), "referense")
    with pytest.raises(ConfigError, match="min_sparsity=75"):
        use_block_kernel(masked_conv(), min_sparsity=75)


# -- building ----------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing is built yet."""
    monkeypatch.setenv("SPARSE_EXT_CACHE", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield monkeypatch
    build.library.cache_clear()


def test_without_a_compiler(fresh, tmp_path):
    """A named error before anything changes; the reference stays usable."""
    fresh.setenv("PATH", str(tmp_path))
    fresh.delenv("CXX", raising=False)
    conv = masked_conv()
    with pytest.raises(
        KernelBuildError, match=r"compiler \('c\+\+'\) and ninja.*backend='reference'"
    ):
        use_block_kernel(conv)
    assert type(conv) is MaskedConv2d
    use_block_kernel(conv, "reference")
    assert conv(torch.randn(1, 16, 4, 4)).shape == (1, 24, 4, 4)


@needs_compiler
def test_a_compiler_that_fails(fresh, tmp_path):
    (tmp_path / "cpp").mkdir()
    fresh.setattr(build, "SOURCE", tmp_path / "cpp" / "block_conv.cpp")
    build.SOURCE.write_text("#error no such thing\n")
    with pytest.raises(KernelBuildError, match="cannot be built"):
        use_block_kernel(masked_conv())
    assert not list((tmp_path / "cache").glob("*.so"))
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_cache_that_cannot_be_written(fresh, tmp_path):
    (tmp_path / "cache").write_text("a file")
    fresh.setattr(build, "_check_tools", lambda compiler: None)
    with pytest.raises(KernelBuildError, match="cache"):
        use_block_kernel(masked_conv())


# -- training ----------------------------------------------------------------------------------


def train(kernel, monkeypatch, method="gmp", **options):
    monkeypatch.setattr("sparse_ext.kernels.layer.MIN_SPARSITY", 0.75)
    section = {"name": method, "granularity": "block8", "kernel": kernel, "final": 0.85, **options}
    module = toy(momentum=method != "gmp", width=16)
    attach(module, build_config(section))
    trainer(epochs=4).fit(module, data(width=16))
    return module


@needs_compiler
@pytest.mark.parametrize(
    ("method", "options", "dense"),
    [("gmp", {}, {False}), ("synccp", {"csi": "off"}, {True}), ("rigl", {}, {True, False})],
)
def test_training_equals_that_of_the_dense_kernel(method, options, dense, calls, monkeypatch):
    """Pruned weights get their gradient in those steps that look at it."""
    wanted = train("dense", monkeypatch, method, **options)
    found = train("block", monkeypatch, method, **options)
    assert calls
    assert {args[-1] for args in calls if args[1].requires_grad} == dense
    for (name, a), b in zip(found.state_dict().items(), wanted.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kernel": "blok"}, "Did you mean 'block'"),
        ({"kernel": "block"}, "granularity=element makes none.*granularity=block8"),
        ({"kernel": "block", "granularity": "block4"}, "granularity=block4 makes none"),
        ({"kernel": "block", "granularity": "block8", "slim_at": 0.9}, "do not go together"),
    ],
)
def test_mistakes_in_the_configuration(section, message):
    with pytest.raises(ConfigError, match=message):
        build_config({"name": "gmp", **section})


def test_refused_in_another_precision(monkeypatch):
    module = toy(momentum=False, width=16)
    attach(module, build_config({"name": "gmp", "granularity": "block8", "kernel": "block"}))
    with pytest.raises(ConfigError, match=r"precision=bf16-mixed.*sparse\.kernel=dense"):
        trainer(precision="bf16-mixed").fit(module, data(width=16))
