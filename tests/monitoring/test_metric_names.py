# SPDX-License-Identifier: MIT
"""Every method of the zoo logs a loss that is found as its own."""

import re
from pathlib import Path

import pytest

import solo.methods
from solo.monitoring.metric_names import own_losses, training_loss, words

pytestmark = pytest.mark.unit
# what the pages of methods log, read from their text
LOGGED = {
    path.stem: re.findall(r'"?(\w*(?:_loss|neg_cos_sim))"?=|"(\w+_loss)":', path.read_text())
    for path in Path(solo.methods.__file__).parent.glob("*.py")
}


@pytest.mark.parametrize(
    ("names", "own"),
    [
        (["train_class_loss", "train_acc1", "train_neg_cos_sim", "train_z_std"], "neg cos sim"),
        (["train_class_loss", "dino_loss", "train_patch_loss", "val_loss"], "dino loss"),
        (["train_nce_loss", "gating/penalty_loss", "momentum_val_loss"], "nce loss"),
        (["train_loss", "val_loss"], "loss"),
        (["train_class_loss", "val_loss"], "class loss"),
    ],
)
def test_the_loss_of_a_run(names, own):
    assert words(training_loss(names)) == own


def test_extensions_and_classifiers_are_no_method():
    assert own_losses(["gating/a_loss", "train_loss", "val_loss", "train_class_loss"]) == []
    assert training_loss(["tau"]) is None


@pytest.mark.parametrize("method", ["byol", "simsiam", "nnbyol", "nnsiam", "mocov3", "swav"])
def test_methods_of_the_zoo(method):
    names = [a or b for a, b in LOGGED[method]]
    logged = [name for name in names if name.startswith("train_")]
    assert own_losses(logged), LOGGED[method]
