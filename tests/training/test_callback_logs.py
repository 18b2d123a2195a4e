# SPDX-License-Identifier: MIT
"""What a sparse run logs, and that it says where it missed its target."""

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import Logger

from tests.pruning.toys import toy
from tests.training.runs import FAST, fit

pytestmark = pytest.mark.unit


def test_figures_are_logged_under_their_names():
    run = fit(toy(), epochs=4).trainer_of_test
    figures = {k.removeprefix("sparse/"): v.item() for k, v in run.callback_metrics.items()}
    expected = {"online_sparsity": 0.8, "momentum_sparsity": 0.5, "gap": 0.3, "triggered": 1.0}
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-3)
    assert {"mask_flips", "drop_fraction", "layer_density/3", "layer_density/9"} <= set(figures)
    run = fit(toy(), section="synccp", epochs=4, max_epochs=2).trainer_of_test
    assert {"sparse/inconsistency", "sparse/excess"} <= set(run.callback_metrics)


class Rows(Logger):
    """Keeps what is logged."""

    name = version = "rows"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *_):
        pass


def test_every_mask_update_is_logged():
    """Eq. 7 per layer at each update, though Lightning logs every 50th step only."""
    rows = Rows()
    callback = fit(toy(), epochs=4, logger=rows)
    seen = {t: row for t, row in rows.rows if "sparse/oscillation" in row}
    assert list(seen) == list(range(0, 20, 2))
    sizes = callback.pruner.online.sizes
    for row in seen.values():
        layers = {name: row[f"sparse/layer_oscillation/{name}"] for name in sizes}
        mean = sum(layers[name] * n for name, n in sizes.items()) / sum(sizes.values())
        assert row["sparse/oscillation"] == pytest.approx(mean)
    assert max(row["sparse/oscillation"] for row in seen.values()) > 0.05


class StopAfter(pl.Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


def test_a_run_that_misses_its_target_says_so(caplog):
    with caplog.at_level("WARNING", "sparse_ext"):
        fit(toy(), section="synccp", callbacks=[StopAfter(2)])
    assert "ended at sparsity 0.3001, not at the final 0.8: it stopped after 2 steps" in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "sparse_ext"):
        fit(toy(), section=FAST)
    assert "ended at" not in caplog.text
