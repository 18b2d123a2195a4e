# SPDX-License-Identifier: MIT
"""Cost of training, added up from the masks of every step; memory; dead filters."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch import nn

from sparse_ext import sparsify
from sparse_ext.cost import count, memory
from sparse_ext.masks.masked_layers import mask_module
from sparse_ext.training.cost_meter import CostMeter, image_shape
from sparse_ext.training.mask_figures import all_dead_filters, dead_filters, oscillation
from tests.pruning.toys import data, tiny_net, toy, trainer

pytestmark = pytest.mark.unit

# MACs of `tiny_net` at 8x8: name -> (positions x weights), by hand
MACS = {"0": 36 * 216, "3": 36 * 576, "5": 4 * 1152, "9": 128}
DENSE = sum(MACS.values())
RAMP = {"name": "synccp", "csi": "off", "update_period": 3, "initial": 0.3, "final": 0.9}


class Watch(pl.Callback):
    """Ratio of effective to dense MACs in every training step, counted by hand."""

    def __init__(self):
        self.rows = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        encoders = [module.backbone, getattr(module, "momentum_backbone", None)]
        self.rows.append([self.ratio(e) for e in encoders if e is not None])

    def ratio(self, encoder):
        layers = dict(encoder.named_modules())
        density = {n: float(getattr(layers[n], "mask", torch.ones(1)).float().mean()) for n in MACS}
        return sum(MACS[n] * density[n] for n in MACS) / DENSE


class Rows(Logger):
    """Keeps what is logged."""

    name = version = "rows"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def log_hyperparams(self, *args, **kwargs):
        pass

    def last(self, key):
        return [row[key] for row in self.rows if key in row][-1]


def watched(momentum, section=RAMP, epochs=4, **kwargs):
    model, watch, rows = toy(momentum=momentum), Watch(), Rows()
    callback = sparsify(model, section)
    run = trainer(epochs=epochs, callbacks=[watch], **(kwargs | {"logger": rows}))
    run.fit(model, data())
    return callback, watch.rows, rows


@pytest.mark.parametrize("momentum", [True, False], ids=["pair", "shared"])
def test_training_cost_is_the_mean_over_the_masks_of_every_step(momentum):
    callback, seen, rows = watched(momentum)
    assert len(seen) == callback.meter.steps == 20
    assert seen[0] != seen[-1]
    means = [sum(column) / len(seen) for column in zip(*seen, strict=True)]
    online = means[0]
    if momentum:
        expected = {"A": (3 * online + means[1]) / 4, "B": (2 * online + 1 + means[1]) / 4}
        expected["C"] = (online + means[1]) / 2
    else:
        expected = {"A": online, "B": (2 * online + 1) / 3, "C": online}
    for name, value in expected.items():
        assert rows.last(f"sparse/training_cost_{name}") == pytest.approx(value, rel=1e-6)
    assert rows.last("sparse/macs_dense") == DENSE
    final = callback.pruner.online.masks.layer_density()
    macs = MACS["0"] + sum(MACS[name] * density for name, density in final.items())
    assert rows.last("sparse/macs_effective") == pytest.approx(macs, rel=1e-6)
    assert ("sparse/macs_effective_momentum" in rows.rows[-1]) == momentum


def test_batches_without_images_cost_nothing_and_are_asked_once():
    meter = CostMeter()
    meter.look([nn.Linear(3, 3)], [torch.zeros(2, 3)])
    meter.step()
    assert meter.looked
    assert meter.figures() == {}
    meter.look([nn.Linear(3, 3)], [torch.zeros(2, 3, 8, 8)])  # does not take images
    meter.step()
    assert meter.figures() == {}


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        (torch.zeros(2, 3, 4, 5), (3, 4, 5)),
        ([torch.arange(2), [torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 2, 2)], None], (3, 6, 6)),
        ({"a": torch.arange(2), "b": torch.zeros(1, 1, 7, 7)}, (1, 7, 7)),
        (torch.zeros(2, 3, 4, 5, dtype=torch.long), None),
        ([torch.zeros(2, 3), "text"], None),
    ],
)
def test_the_first_image_of_a_batch_gives_the_size(batch, shape):
    assert image_shape(batch) == shape


def test_counting_leaves_random_numbers_alone():
    class Noisy(nn.Conv2d):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    noisy = Noisy(3, 4, 1)
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    count(noisy, 8)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("evaluation", [True, False])
def test_training_through_two_branches_costs_their_mean(evaluation):
    from sparse_ext.masks.encoder import Encoder
    from sparse_ext.masks.living_weights import Branches, make_functional

    net = nn.Sequential(nn.Conv2d(3, 4, 1), mask_module(nn.Conv2d(4, 8, 1)))
    net[1].mask.view(-1)[8:] = False  # a quarter is kept
    make_functional(Encoder(net), Branches(first=True, others=False, evaluation=evaluation))
    meter = CostMeter()
    meter.look([net], torch.zeros(2, 3, 5, 5))
    meter.step()
    assert meter.table.macs_dense == 25 * (12 + 32)
    figures = meter.figures()
    assert figures["macs_effective"] == 25 * (12 + (8 if evaluation else 32))
    assert figures["training_cost_A"] == (12 + (8 + 32) / 2) / (12 + 32)
    assert meter.table.macs_effective == figures["macs_effective"]


# ---- memory ----


def masked_table(keep):
    net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), mask_module(nn.Conv2d(8, 16, 1)))
    net[1].mask.copy_(keep(torch.arange(128).view(16, 8, 1, 1)))
    net[1].apply_mask()
    return count(net, 4)


def test_memory_of_single_weights_has_a_bit_per_weight():
    size = memory(masked_table(lambda i: i % 4 == 0))
    assert size.dense == 4 * (24 + 128 + 16)
    assert size.kept == 4 * (24 + 32 + 16)
    assert size.index == 128 / 8
    assert size.total == size.kept + 16


def test_memory_of_patterns():
    two_of_four = masked_table(lambda i: i % 4 < 2)
    assert memory(two_of_four, "2:4").index == 64 * 2 / 8  # two bits per kept value
    assert memory(masked_table(lambda i: i % 4 < 1), "1:4").index == 32 * 2 / 8
    assert memory(masked_table(lambda i: i < 64), "block8").index == 2 / 8
    assert memory(masked_table(lambda i: i < 64), "filter").index == 16 / 8
    assert memory(masked_table(lambda i: i >= 0), "2:4").index == 0  # nothing is pruned


# ---- dead filters ----


def test_dead_filters_are_output_channels_without_a_weight():
    masks = {"a": torch.ones(4, 2, 3, 3, dtype=torch.bool), "b": torch.ones(8, 4, dtype=torch.bool)}
    masks["a"][1] = False
    masks["a"][2, 0] = False  # half of it is left
    masks["b"][:4] = False
    shares = dead_filters(masks)
    assert shares == {"a": 0.25, "b": 0.5}
    assert all_dead_filters(masks, shares) == pytest.approx(5 / 12)


def test_oscillation_of_all_layers_weighs_them_by_size():
    masks = {"a": torch.ones(4, 2, dtype=torch.bool), "b": torch.ones(8, 3, dtype=torch.bool)}
    assert oscillation(masks, {"a": 0.5, "b": 0.25}) == pytest.approx((4 + 6) / 32)
    callback, _, rows = watched(True)
    layers = {n: rows.last(f"sparse/layer_oscillation/{n}") for n in callback.pruner.online.masks}
    expected = oscillation(callback.pruner.online.masks, layers)
    assert rows.last("sparse/oscillation") == pytest.approx(expected)


def test_dead_filters_are_logged():
    callback, _, rows = watched(False)
    masks = callback.pruner.online.masks
    dead = sum(int((mask.flatten(1).sum(1) == 0).sum()) for mask in masks.values())
    channels = sum(mask.shape[0] for mask in masks.values())
    assert rows.last("sparse/dead_filters") == pytest.approx(dead / channels)
    assert rows.last("sparse/layer_dead_filters/3") == pytest.approx(
        int((masks["3"].flatten(1).sum(1) == 0).sum()) / 8
    )
    assert tiny_net()[3].weight.shape[0] == 8
