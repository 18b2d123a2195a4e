# SPDX-License-Identifier: MIT
"""Deferred metrics against Lightning's own, and what a step may not do."""

import csv
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from solo.monitoring.step_metrics import Gathered, StepMetrics
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

pytestmark = pytest.mark.unit

BYOL = {"proj_hidden_dim": 8, "proj_output_dim": 4, "pred_hidden_dim": 8}
BY_LIGHTNING = pl.LightningModule.log


class Rows(Logger):
    """Keeps every row."""

    name, version = "rows", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        """Not of interest."""


class Toy(pl.LightningModule):
    """Logs what its batch holds, in batches of different sizes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.images_in_step = 1

    def training_step(self, batch, batch_idx):
        self.images_in_step = len(batch)
        loss = (self.weight - batch.mean()) ** 2
        self.log_dict({"value": batch.mean(), "loss": loss}, on_epoch=True, sync_dist=True)
        self.log("shape1", batch[:1].detach(), on_epoch=True)
        self.log("only_step", float(batch_idx))
        self.log("only_epoch", batch.mean(), on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, *args):
        self.log("number", float(self.global_step))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class DeferredToy(StepMetrics, Toy):
    """The same, deferred."""


def fitted(module, n=11, **kwargs):
    rows = Rows()
    data = DataLoader(torch.arange(n, dtype=torch.float32), batch_size=2)  # the last has one
    trainer = tiny_trainer(logger=rows, **{"log_every_n_steps": 2, "max_epochs": 2, **kwargs})
    trainer.fit(module, data)
    return rows.rows, trainer.callback_metrics


def same(ours, lightnings):
    assert [(step, set(row)) for step, row in ours] == [(s, set(row)) for s, row in lightnings]
    for (_, mine), (_, theirs) in zip(ours, lightnings, strict=True):
        for name, value in theirs.items():
            assert math.isclose(mine[name], value, rel_tol=1e-5, abs_tol=1e-6), name


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"accumulate_grad_batches": 3}, {"log_every_n_steps": 50}, {"max_steps": 8}],
)
def test_rows_names_and_values_are_lightnings(kwargs):
    ours, our_metrics = fitted(DeferredToy(), **kwargs)
    lightnings, metrics = fitted(Toy(), **kwargs)
    same(ours, lightnings)
    assert set(our_metrics) == set(metrics)
    for name, value in metrics.items():
        torch.testing.assert_close(our_metrics[name], value)


def test_most_steps_do_not_reach_lightning(monkeypatch):
    calls = []
    monkeypatch.setattr(pl.LightningModule, "log", lambda self, name, *a, **k: calls.append(name))
    fitted(DeferredToy(), n=40, max_epochs=1, log_every_n_steps=10)
    assert calls.count("value_step") == 2  # step 10, and step 20, which is the last
    assert calls.count("number") == 2
    assert calls.count("value_epoch") == 1


def test_gathered_mean_is_weighted():
    gathered = Gathered()
    for value, weight in ((1.0, 1), (2.0, 3)):
        gathered.add(torch.tensor([value]), weight)
    gathered.fold()
    gathered.add(torch.tensor(10.0), 4)
    assert gathered.mean().item() == pytest.approx((1 + 6 + 40) / 8)


def between_intervals(monkeypatch):
    monkeypatch.setattr(StepMetrics, "_logs_now", lambda self: False)
    module = DeferredToy()
    module._trainer = tiny_trainer(max_epochs=1)
    module._current_fx_name = "training_step"
    return module


def test_what_an_interrupted_epoch_left_is_dropped(monkeypatch):
    module = between_intervals(monkeypatch)
    module.log("value", torch.tensor(5.0), on_epoch=True)
    assert module._metrics_of_epoch()
    module._trainer = tiny_trainer(max_epochs=1)
    assert module._metrics_of_epoch() == {}


def test_graphs_are_let_go(monkeypatch):
    module = between_intervals(monkeypatch)
    module.log("value", (module.weight * 2).reshape(1), on_epoch=True)
    (gathered,) = module._metrics_of_epoch().values()
    assert not gathered._values[0].requires_grad


def test_a_real_method_writes_the_same_file(tmp_path, monkeypatch):
    from solo.methods import METHODS
    from solo.monitoring.loggers import CSVMetrics

    def run(folder):
        torch.manual_seed(0)
        model = METHODS["byol"](tiny_cfg("byol", BYOL, momentum__classifier=True))
        logger = CSVMetrics(folder)
        tiny_trainer(logger=logger, log_every_n_steps=3).fit(model, *tiny_loaders(steps=5))
        with open(logger.path, newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]

    ours = run(tmp_path / "ours")
    monkeypatch.setattr(StepMetrics, "log", BY_LIGHTNING)
    lightnings = run(tmp_path / "lightnings")
    assert "tau" in {name for row in ours for name in row}
    same(
        [(row["step"], {k: float(v) for k, v in row.items()}) for row in ours],
        [(row["step"], {k: float(v) for k, v in row.items()}) for row in lightnings],
    )
