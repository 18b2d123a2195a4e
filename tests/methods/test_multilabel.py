# SPDX-License-Identifier: MIT
"""MultiLabel: loss and precision against numpy, mistakes; its runs are in tests/tickets."""

import numpy as np
import pytest
import torch

from solo.errors import ConfigError
from solo.losses import multilabel_loss_func
from solo.methods import MultiLabel
from solo.utils.voc_svm import average_precision, mean_average_precision
from tests.methods.helpers import tiny_cfg

pytestmark = pytest.mark.unit

# -- loss and precision ------------------------------------------------------------------------


def test_loss_is_the_sum_over_classes_of_what_counts():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 3)), rng.integers(-1, 2, (5, 3))
    p = 1 / (1 + np.exp(-logits))
    each = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    expected = each[labels != -1].sum() / 5
    loss = multilabel_loss_func(torch.tensor(logits), torch.tensor(labels))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_labels_left_out_have_no_gradient():
    logits = torch.zeros(2, 2, requires_grad=True)
    multilabel_loss_func(logits, torch.tensor([[1, -1], [0, 1]])).backward()
    assert torch.equal(logits.grad, torch.tensor([[-0.25, 0.0], [0.25, -0.25]]))


def test_mean_precision_passes_over_classes_that_nothing_shows():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(20, 3)), rng.integers(-1, 2, (20, 3))
    labels[:, 1] = np.minimum(labels[:, 1], 0)
    expected = (average_precision(scores[:, 0], labels[:, 0])
                + average_precision(scores[:, 2], labels[:, 2])) / 2  # fmt: skip
    assert mean_average_precision(scores, labels) == pytest.approx(expected)
    assert mean_average_precision(scores, np.zeros((20, 3), int)) == 0


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "data.dataset=cifar10 have one label each: write method=supervised"),
        ({"data__dataset": "voc07"}, r"augmentations.0.num_crops=1"),
        (
            {"data__dataset": "voc07", "data__num_large_crops": 1, "knn_eval__enabled": True},
            "knn_eval.enabled=False",
        ),
        (
            {"data__dataset": "voc07", "data__num_large_crops": 1, "data__no_labels": True},
            "remove data.no_labels=True",
        ),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        MultiLabel(tiny_cfg("multilabel", **changes))
