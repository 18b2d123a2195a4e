# SPDX-License-Identifier: MIT
"""Between two log intervals no step asks a tensor for its value, which would wait for a GPU."""

import traceback

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from solo.methods import METHODS
from sparse_ext import extension
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit
BYOL = {"proj_hidden_dim": 8, "proj_output_dim": 4, "pred_hidden_dim": 8}
SIMCLR = {"proj_hidden_dim": 8, "proj_output_dim": 4, "temperature": 0.2}
RARELY = {"update_period": 10, "final": 0.5}  # no new masks in the steps that are watched
# Operations whose result, or its shape, the host needs to know.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")
LEAVING = ("tolist", "numpy", "cpu")  # what copies to the host
# Labels are looked at while they are on the host, and a mean of gradients asks only a CPU tensor.
ON_THE_HOST = ("in _has_labels", "in on_before_batch_transfer", "in ema_gradient_")
FIRST, END = 2, 5  # steps that are watched


class Watch(TorchDispatchMode):
    """Notes where a value is asked for while it is entered."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put_") and by_mask(args[1])):
            self.note(str(func))
        return func(*args, **(kwargs or {}))

    def note(self, what):
        place = "".join(traceback.format_stack(limit=12)[:-2])
        if not any(name in place for name in ON_THE_HOST):
            self.found.append(f"{what}\n{place}")


def by_mask(indexes):
    """Whether an index is a mask, whose number of ones decides the shape."""
    return any(index is not None and index.dtype == torch.bool for index in indexes)


class WatchSteps(Callback):
    """Watches from the beginning of one step until that of another one, batches included."""

    def __init__(self, monkeypatch):
        self.watch, self.patch, self.done = Watch(), monkeypatch.context(), False

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == FIRST:
            patched = self.patch.__enter__()
            for name in LEAVING:
                patched.setattr(torch.Tensor, name, self._noting(getattr(torch.Tensor, name)))
            self.watch.__enter__()
        elif batch_idx == END:
            self.watch.__exit__(None, None, None)
            self.patch.__exit__(None, None, None)
            self.done = trainer.should_stop = True

    def _noting(self, original):
        def method(tensor, *args, **kwargs):
            self.watch.note(original.__name__)
            return original(tensor, *args, **kwargs)

        return method


def built(method, kwargs, **changes):
    torch.manual_seed(0)
    cfg = tiny_cfg(method, kwargs, backbone__kwargs__width=2, **changes)
    extension.enable(cfg)
    return METHODS[method](cfg)


def asked(model, monkeypatch, **options):
    """Where values were asked for."""
    steps = WatchSteps(monkeypatch)
    options = {"max_epochs": 40, "log_every_n_steps": 50, "limit_val_batches": 0, **options}
    trainer = tiny_trainer(callbacks=[steps], **options)
    trainer.fit(model, tiny_loaders(steps=7)[0])
    assert steps.done
    return steps.watch.found


LARS = {
    "optimizer__name": "lars",
    "optimizer__kwargs": {"eta": 0.02, "clip_lr": True, "exclude_bias_n_norm": True},
}
CASES = {
    "simclr": ("simclr", SIMCLR, {}),
    "simclr, kNN": ("simclr", SIMCLR, {"knn_eval": {"enabled": True, "k": 2}}),
    "byol, LARS": ("byol", BYOL, {**LARS, "momentum__classifier": True}),
    "byol, RigL": ("byol", BYOL, {"sparse": {"name": "rigl", **RARELY}}),
    "simclr, GraNet": ("simclr", SIMCLR, {"sparse": {"name": "granet", **RARELY}}),
    "byol, SyncCP": ("byol", BYOL, {"sparse": {"name": "synccp", **RARELY}}),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits(case, monkeypatch):
    method, kwargs, changes = CASES[case]
    found = asked(built(method, kwargs, **changes), monkeypatch)
    assert not found, found[0]


def test_accumulated_and_clipped_gradients_do_not_wait(monkeypatch):
    model = built("byol", BYOL)
    found = asked(model, monkeypatch, accumulate_grad_batches=2, gradient_clip_val=1.0)
    assert not found, found[0]


class Curious(METHODS["simclr"]):
    """Asks in every step."""

    question = staticmethod(torch.Tensor.item)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.question(loss.detach())
        return loss


@pytest.mark.parametrize(
    "question",
    [
        torch.Tensor.item,
        float,
        bool,
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
    ],
    ids=["item", "float", "bool", "nonzero", "cpu", "tolist"],
)
def test_a_step_that_asks_is_found(question, monkeypatch):
    torch.manual_seed(0)
    model = Curious(tiny_cfg("simclr", SIMCLR, backbone__kwargs__width=2))
    model.question = question
    found = asked(model, monkeypatch)
    assert len(found) >= END - FIRST
    assert any("training_step" in place for place in found)


def test_images_without_labels_stay_out_of_the_knn_whatever_batch_came_before():
    model = built("simclr", SIMCLR, knn_eval={"enabled": True, "k": 2})
    train, _ = tiny_loaders(steps=3)
    for n in (5, 8, 9, 10, 11):  # one image of the second batch, the whole third one
        indexes, views, _ = train.dataset.items[n]
        train.dataset.items[n] = (indexes, views, torch.tensor(-1))
    tiny_trainer(max_epochs=1, limit_val_batches=0).fit(model, train)
    views = model.num_large_crops
    assert [len(t) for t in model.knn.train_targets] == [4 * views, 3 * views, 0]
    assert [len(f) for f in model.knn.train_features] == [4 * views, 3 * views, 0]
    assert all((t != -1).all() for t in model.knn.train_targets)
