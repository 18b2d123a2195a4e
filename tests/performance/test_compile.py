# SPDX-License-Identifier: MIT
"""Compiled encoders: equal to plain ones, with masks; plain where compiling cannot be right.

Generating code takes minutes, so most tests run the captured graphs as they are (`eager`).
"""

import copy
import logging
import warnings

import pytest
import torch

from solo.methods import METHODS
from solo.utils.compiled_encoder import CompiledEncoder, compile_encoders
from sparse_ext import extension
from tests.methods.helpers import tiny_batch, tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

BYOL = {"proj_hidden_dim": 8, "proj_output_dim": 4, "pred_hidden_dim": 8}
SIMCLR = {"proj_hidden_dim": 8, "proj_output_dim": 4, "temperature": 0.2}
torch_compile = torch.compile


@pytest.fixture
def quick(monkeypatch):
    """Graphs are captured and guarded, but run uncompiled."""

    def compile(function, **kwargs):
        kwargs.pop("options")
        return torch_compile(function, backend="eager", **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    # pytest records what the compiler traces, which takes it longer than the rest
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    torch._dynamo.reset()


def built(method, kwargs, **changes):
    torch.manual_seed(0)
    cfg = tiny_cfg(method, kwargs, backbone__kwargs__width=2, **changes)
    extension.enable(cfg)
    return METHODS[method](cfg)


def byol(**changes):
    return built("byol", BYOL, **changes)


def fitted(model, compiled):
    if compiled:
        compile_encoders(model)
    torch.manual_seed(0)
    tiny_trainer(max_epochs=1).fit(model, *tiny_loaders(steps=3))
    return model


def is_compiled(encoder):
    call = encoder._compiled_call_impl
    return call._call is not None and call._call is not call.function


def equal(a, b):
    assert list(a.state_dict()) == list(b.state_dict())
    for name, value in a.state_dict().items():
        other = b.state_dict()[name]
        torch.testing.assert_close(other, value, rtol=1e-3, atol=1e-5, msg=name)


def test_training_is_the_same(quick):
    plain, compiled = fitted(byol(), False), fitted(byol(), True)
    assert is_compiled(compiled.backbone)
    assert is_compiled(compiled.momentum_backbone)
    equal(plain, compiled)


def test_training_with_masks_is_the_same(quick):
    sparse = {"name": "rigl", "final": 0.5, "update_period": 1}
    plain, compiled = (fitted(byol(sparse=sparse), c) for c in (False, True))
    assert is_compiled(compiled.backbone)
    equal(plain, compiled)
    masked = {n: m for n, m in compiled.backbone.named_modules() if hasattr(m, "mask")}
    assert any(not bool(m.mask.all()) for m in masked.values())
    assert all(bool((m.weight[~m.mask] == 0).all()) for m in masked.values())


@pytest.mark.parametrize(
    ("method", "kwargs", "section", "reason"),
    [
        ("byol", BYOL, {"gating": {"name": "vicreg_gating"}}, "gates choose a branch"),
        ("simclr", SIMCLR, {"sparse": {"name": "sdclr", "final": 0.5}}, "choose a mask"),
    ],
)
def test_what_depends_on_the_view_runs_plain_and_says_so(quick, method, kwargs, section, reason):
    model = built(method, kwargs, **section)
    compile_encoders(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted_model = fitted(model, False)
    said = [str(w.message) for w in caught if "performance.compile" in str(w.message)]
    assert said
    assert len(said) == len(set(said))  # once per encoder
    assert all(reason in line for line in said)
    assert not is_compiled(fitted_model.backbone)


def test_a_compiler_that_fails_is_one_line_and_equal_results(monkeypatch):
    def compile(function, **kwargs):
        def fails(*args):
            raise RuntimeError("no compiler\nlong story")

        return fails

    plain = fitted(byol(), False)
    monkeypatch.setattr(torch, "compile", compile)
    with pytest.warns(UserWarning, match=r"torch.compile fails for the encoder .*no compiler"):
        compiled = fitted(byol(), True)
    equal(plain, compiled)


def test_evaluation_runs_plain(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("compiled"))
    model = byol()
    compile_encoders(model)
    model.eval()
    (x, _), *_ = tiny_batch()[1:]
    assert model(x)["feats"].shape[0] == 4


def test_a_frozen_encoder_is_compiled_in_evaluation_mode_only(quick):
    encoder = torch.nn.Linear(3, 2).eval()
    call = encoder._compiled_call_impl = CompiledEncoder(encoder, "encoder", frozen=True)
    x = torch.randn(4, 3)
    torch.testing.assert_close(encoder(x), x @ encoder.weight.T + encoder.bias)
    assert call._call is not None
    encoder.train()(x)


def test_copies_and_names_know_nothing_of_it(quick):
    model = byol()
    names = list(model.state_dict())
    compile_encoders(model)
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    assert twin.backbone._compiled_call_impl is None


def test_random_numbers_are_those_of_the_plain_encoder(monkeypatch):
    seen = {}
    monkeypatch.setattr(torch, "compile", lambda f, **k: seen.update(k) or f)
    encoder = torch.nn.Dropout()
    encoder._compiled_call_impl = CompiledEncoder(encoder, "encoder")
    encoder(torch.ones(2))
    assert seen["options"] == {"fallback_random": True}


@pytest.mark.slow
def test_generated_code_gives_the_same_training():
    torch._dynamo.reset()
    plain, compiled = fitted(byol(), False), fitted(byol(), True)
    assert is_compiled(compiled.backbone)
    equal(plain, compiled)
