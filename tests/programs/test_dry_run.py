# SPDX-License-Identifier: MIT
"""++dry_run=True: steps, time and memory of a run, from ten of its steps."""

import re
import resource

import pytest

from solo.programs.dry_run import MEASURED, peak_memory
from solo.programs.pretrain import pretrain
from sparse_ext import extension
from tests.programs.tiny import PRETRAIN, config


def test_ten_steps_and_what_they_mean(cwd, capsys):
    cfg = config(PRETRAIN, dry_run=True, max_epochs=7, limit_train_batches=30)
    trainer = pretrain(cfg)
    out = capsys.readouterr().out
    assert trainer.global_step == 12
    seconds = float(re.search(rf"{MEASURED} steps measured, ([\d.]+) s each", out)[1])
    rate = float(re.search(r"\(([\d,.]+) images/s\)", out)[1].replace(",", ""))
    assert rate == pytest.approx(16 / seconds, rel=0.1)
    assert "30 in an epoch, 210 in 7 epochs" in out
    assert re.search(r"memory +[\d.,]+ [GM]B at most", out)
    assert not (cwd / "trained_models").exists()


def test_a_sparse_run_is_not_told_that_it_ended_early(cwd, caplog):
    extension.register()
    sparse = {"name": "synccp", "final": 0.8, "update_period": 1}
    pretrain(config(PRETRAIN, dry_run=True, max_epochs=9, limit_train_batches=2, sparse=sparse))
    assert not [record for record in caplog.records if "run ended at" in record.message]


def test_a_run_of_few_steps(cwd, capsys):
    pretrain(config(PRETRAIN, dry_run=True, max_epochs=1, limit_train_batches=2))
    assert "2 in an epoch, 2 in 1 epochs" in capsys.readouterr().out


def test_max_steps_is_the_end(cwd, capsys):
    pretrain(config(PRETRAIN, dry_run=True, max_epochs=9, max_steps=40, limit_train_batches=30))
    assert "40 in 9 epochs" in capsys.readouterr().out


@pytest.mark.unit
def test_memory_is_in_bytes():
    import torch

    if not torch.cuda.is_available():
        assert peak_memory() == 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert peak_memory() > 100e6
