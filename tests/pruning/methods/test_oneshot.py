# SPDX-License-Identifier: MIT
"""One-shot magnitude pruning and ASP against numpy, and the dense files they start from."""

import numpy as np
import pytest
import torch

from solo.errors import CheckpointError, ConfigError
from sparse_ext import sparsify
from sparse_ext.allocation import budgets
from sparse_ext.config.sections import build
from sparse_ext.masks.granularity import NM
from tests.pruning.toys import data, pruner_of, toy, trainer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("prune_at", "when"), [(0, -1), (0.5, 49), (1.0, 99)])
@pytest.mark.parametrize("rule", ["global", "uniform"])
def test_oneshot_prunes_once(prune_at, when, rule):
    section = {"name": "oneshot", "allocation": rule, "prune_at": prune_at, "final": 0.75}
    pruner = pruner_of(build(section), shared=True)
    dense = {n: w.abs().numpy().copy() for n, w in pruner.online.weights.items()}
    pruner.start()
    n = pruner.online.masks.n
    for t in range(100):
        assert pruner.kept == [round(0.25 * n) if t > when else n]
        assert pruner.after_step() == (t == when)
    assert pruner.kept == [round(0.25 * n)]
    if rule == "global":
        flat = np.concatenate([w.ravel() for w in dense.values()])
        threshold = np.sort(flat)[::-1][pruner.kept[0] - 1]
        expected = {name: w >= threshold for name, w in dense.items()}
    else:
        counts = budgets.uniform(pruner.online.masks.shapes, 0.25)
        expected = {k: w >= np.sort(w.ravel())[::-1][counts[k] - 1] for k, w in dense.items()}
    for name, mask in pruner.online.masks.items():
        assert np.array_equal(mask.numpy(), expected[name])


def dense_file(tmp_path, **kwargs):
    """A trained dense run of the toy."""
    model = toy(seed=3, **kwargs)
    run = trainer(tmp_path, 2)
    run.fit(model, data(width=kwargs.get("width", 8)))
    path = tmp_path / "dense.ckpt"
    run.save_checkpoint(path)
    return path, model


def test_asp_keeps_the_two_largest_of_four_and_fine_tunes_them(tmp_path):
    path, trained = dense_file(tmp_path, width=16)
    model = toy(width=16)
    callback = sparsify(model, {"name": "asp", "dense_checkpoint": str(path), "debug": True})
    from lightning.pytorch import Callback

    class First(Callback):
        def on_train_batch_start(self, run, module, batch, index):
            if run.global_step == 0:
                self.masks = {n: m.clone() for n, m in callback.pruner.online.masks.items()}
                self.head = module.predictor.weight.detach().clone()

    first = First()
    trainer(tmp_path, 2, callbacks=[first]).fit(model, data(width=16))
    assert torch.equal(first.head, trained.predictor.weight)
    assert list(callback.pruner.online.layers) == ["3", "5", "9"]
    for name, mask in callback.pruner.online.masks.items():
        assert torch.equal(mask, first.masks[name])
        old = trained.backbone[int(name)].weight.detach()
        groups = old.movedim(1, -1).reshape(-1, 4).abs().numpy()
        kept = np.zeros(groups.shape, bool)
        for row, group in zip(kept, groups, strict=True):
            row[np.argsort(-group, kind="stable")[:2]] = True
        assert np.array_equal(mask.movedim(1, -1).reshape(-1, 4).numpy(), kept)
        now = model.backbone[int(name)].weight
        assert NM(2, 4).satisfied(now.detach())
        assert not torch.equal(now[mask], old[mask])


def test_asp_leaves_layers_dense_that_tensor_cores_do_not_take():
    """The tiny net of width 8 has 8, 8 and 16 inputs."""
    assert list(pruner_of(build("asp")).online.layers) == ["9"]
    free = build({"name": "asp", "tensor_core": False})
    assert list(pruner_of(free).online.layers) == ["3", "5", "9"]
    with pytest.raises(ConfigError, match="multiples of 8x16"):
        sparsify(toy(width=4), "asp")


def test_dense_checkpoints_that_do_not_fit(tmp_path):
    path, _ = dense_file(tmp_path)
    section = {"name": "oneshot", "dense_checkpoint": str(path)}
    model = toy(width=16)
    sparsify(model, section)
    with pytest.raises(CheckpointError, match=r"dense_checkpoint=.*same backbone and method"):
        trainer().fit(model, data(width=16))
    model = toy()
    sparsify(model, {**section, "dense_checkpoint": str(tmp_path / "none.ckpt")})
    with pytest.raises(CheckpointError, match=r"none\.ckpt"):
        trainer().fit(model, data())
    model = toy()
    sparsify(model, section)
    run = trainer(tmp_path)
    run.fit(model, data())
    run.save_checkpoint(tmp_path / "sparse.ckpt")
    model = toy()
    sparsify(model, {**section, "dense_checkpoint": str(tmp_path / "sparse.ckpt")})
    with pytest.raises(CheckpointError, match="it has masks"):
        trainer().fit(model, data())
