# SPDX-License-Identifier: MIT
"""Requests that cannot be met: a named error before the first step, for each method concerned."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from solo.errors import CheckpointError, ConfigError
from sparse_ext import sparsify
from sparse_ext.config.sections import METHODS as ALL
from sparse_ext.config.sections import build
from tests.pruning.methods.test_all import NM_ONLY, PAIR_ONLY, SHARED_ONLY, Views
from tests.pruning.toys import data, trainer

METHODS = [name for name in ALL if name != "fixed"]  # which starts from a sparse encoder

pytestmark = pytest.mark.unit


class NoStep(Callback):
    """Training must not have begun."""

    def on_train_batch_end(self, *_):
        raise AssertionError("a step was made")


def fit(section, momentum=True, **options):
    torch.manual_seed(0)
    model = Views(momentum=momentum)
    sparsify(model, section)
    ckpt = options.pop("ckpt_path", None)
    trainer(callbacks=[NoStep()], **options).fit(model, data(), ckpt_path=ckpt)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_has_nothing_to_prune(name):
    model = Views(momentum=name not in SHARED_ONLY)
    model.backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())
    with pytest.raises(ConfigError, match="Sequential has nothing to prune"):
        sparsify(model, name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("granularity", ["4:2", "4:4", "0:4"])
def test_n_of_m_with_n_too_large_or_zero(name, granularity):
    with pytest.raises(ConfigError, match=rf"granularity={granularity} needs 0 < N < M"):
        build({"name": name, "granularity": granularity})


@pytest.mark.parametrize("name", [n for n in METHODS if n not in NM_ONLY])
def test_a_block_size_that_no_layer_allows(name):
    model = Views(momentum=name not in SHARED_ONLY)
    with pytest.raises(ConfigError, match=r"granularity=block64 fits no layer.*3: .*element"):
        sparsify(model, {"name": name, "granularity": "block64"})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "gmp", "update_period": 8}, r"lower sparse\.update_period, or train longer"),
        ({"name": "granet", "update_period": 8}, r"lower sparse\.update_period, or train longer"),
        ({"name": "granet_ssl", "update_period": 99}, r"lower sparse\.update_period"),
        ({"name": "rigl", "update_period": 8}, r"update_period=8: masks would never change"),
        ({"name": "rigl_itop", "update_period": 10}, r"of 10 steps.*or train longer"),
        ({"name": "synccp", "csi": "epoch:60"}, "start the ramp earlier, or train longer"),
        ({"name": "synccp", "csi": "epoch:0.65", "update_period": 2}, "start the ramp earlier"),
        (
            {"name": "gmp", "granularity": "filter", "slim_at": 40},
            r"slim_at=40\.0 is step 40 of a run of 10",
        ),
    ],
)
def test_a_schedule_longer_than_training(section, message):
    with pytest.raises(ConfigError, match=message):
        fit(section)


MOMENTUM = {"momentum_final": 0.4, "momentum_initial": 0.1, "ema_mode": "hold"}
EITHER = [name for name in METHODS if name not in (*PAIR_ONLY, *SHARED_ONLY, "synccp")]


@pytest.mark.parametrize("name", EITHER)  # SyncCP's options depend on each other: test_refused_runs
@pytest.mark.parametrize("option", MOMENTUM)
def test_momentum_options_on_a_shared_encoder(name, option):
    with pytest.raises(ConfigError, match=rf"sparse\.{option}=.*(Leave it out|has no effect)"):
        fit({"name": name, option: MOMENTUM[option]}, momentum=False)


CHANGES = {
    "final": ({"final": 0.6}, r"sparse\.final=0\.7.*, this run has sparse\.final=0\.6"),
    "granularity": (
        {"granularity": "filter"},
        r"sparse\.granularity=element, this run has sparse\.granularity=filter",
    ),
}


def trained(section, folder):
    """A checkpoint of a sparse run of one epoch."""
    torch.manual_seed(0)
    model = Views()
    sparsify(model, section)
    run = trainer(epochs=1)
    run.fit(model, data())
    run.save_checkpoint(folder / "a.ckpt")
    return folder / "a.ckpt"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["synccp", "gmp", "granet", "rigl", "random", "snip", "sd"])
def test_resuming_with_another_sparsity(tmp_path, name, change):
    section = {"name": name, "final": 0.7}
    checkpoint = trained(section, tmp_path)
    settings, message = CHANGES[change]
    with pytest.raises(CheckpointError, match=message):
        fit(section | settings, ckpt_path=checkpoint)


@pytest.mark.parametrize(
    ("before", "name", "message"),
    [
        ("gmp", "random", r"trained with sparse\.name=gmp.*has random"),
        ("gmp", "sr_ste", r"'backbone\.3' are stored as zero .*run they live on"),
        ("sr_ste", "gmp", r"'backbone\.3' live on .*run they are stored as zero"),
    ],
)
def test_resuming_with_another_method(tmp_path, before, name, message):
    checkpoint = trained(before, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        fit(name, ckpt_path=checkpoint)
