# SPDX-License-Identifier: MIT
"""Every rival in whole runs: resumed equals straight (property 6), and linear evaluation."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from solo.utils.views import encoding
from sparse_ext import sparsify
from sparse_ext.config.sections import METHODS
from sparse_ext.extension import register
from tests.pruning.toys import data, trainer
from tests.training.test_resume import Forward, Recording, everything

pytestmark = pytest.mark.unit
RIVALS = [name for name in METHODS if name not in ("synccp", "gmp", "fixed")]

SECTIONS = {
    "granet": {"update_period": 2},
    "granet_ssl": {"update_period": 2},
    "rigl": {"update_period": 2},
    "rigl_itop": {"update_period": 2},
    "oneshot": {"prune_at": 0.6},
    "asp": {"tensor_core": False},
    "mcp": {"admm_end": 0.4},
}
SHARED_ONLY, PAIRS_ONLY = ("sdclr",), ("mcp",)


class Announcing(Recording):
    """Shows the batch and its mirror image as two views."""

    def training_step(self, batch, index):
        x, target = batch
        losses = []
        for view, image in enumerate((x, x.flip(-1))):
            with encoding(view):
                losses.append(super().training_step((image, target), index))
        return sum(losses)


def model_of(name, seed, momentum):
    torch.manual_seed(seed)
    model = Announcing(momentum=momentum)
    sparsify(model, {"name": name, "debug": True, **SECTIONS.get(name, {})})
    return model


def tensors(state):
    """Nested dictionaries as pairs of path and value."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{path}", leaf) for path, leaf in tensors(value))
        else:
            yield key, value


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("name", RIVALS)
def test_resumed_equals_straight(tmp_path, name, momentum):
    """A file within an epoch, after the first changes of masks and before the last."""
    if name in (SHARED_ONLY if momentum else PAIRS_ONLY):
        pytest.skip("refused, see test_functional")
    files = ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=8, save_top_k=-1, save_on_train_epoch_end=False
    )
    straight = model_of(name, 0, momentum)
    run = trainer(tmp_path, 4, callbacks=[files], enable_checkpointing=True)
    run.fit(straight, Forward(data()))
    expected = everything(straight, run)
    resumed = model_of(name, 9, momentum)
    loader = Forward(data())
    loader.skip = 8 % 5
    again = trainer(tmp_path, 4)
    again.fit(resumed, loader, ckpt_path=tmp_path / "step=8.ckpt")
    found = everything(resumed, again)
    assert found[0].keys() == expected[0].keys()
    assert not [k for k, v in expected[0].items() if not torch.equal(v, found[0][k])]
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    mine, theirs = dict(tensors(found[2])), dict(tensors(expected[2]))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, theirs[key]), key
    pruner = resumed._pruning.pruner
    assert pruner.t == 20
    units = [pruner.units.count(encoder.masks) for encoder in pruner.encoders]
    assert units == [pruner.units.budget(final) for final in pruner.finals]


@pytest.mark.slow
@pytest.mark.parametrize("name", RIVALS)
def test_linear_evaluation_without_further_flags(tmp_path, monkeypatch, capsys, name):
    from solo.programs.linear import linear
    from solo.programs.pretrain import pretrain
    from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

    register()
    monkeypatch.chdir(tmp_path)
    changes = {"backbone__kwargs": {"width": 4}, "max_epochs": 2}
    method = "mocov2plus"
    if name == "sdclr":
        method = "simclr"
        changes |= {
            "method": method,
            "method_kwargs": {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
        }
    section = {"name": name, **SECTIONS.get(name, {})}
    pretrain(config(PRETRAIN, sparse=section, **changes))
    _, checkpoint = run_of(tmp_path, method)
    capsys.readouterr()
    linear(
        config(
            LINEAR,
            pretrained_feature_extractor=str(checkpoint),
            pretrain_method=method,
            backbone__kwargs={"width": 4},
        )
    )
    out = capsys.readouterr().out
    assert "loaded all" in out
    assert ("sparsity 0." in out) == (name not in ("sdclr", "mcp"))
