# SPDX-License-Identifier: MIT
"""Class-balanced batches, and GraSP on them with labels."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from solo.errors import ConfigError
from sparse_ext import sparsify
from sparse_ext.config.sections import build
from sparse_ext.pruning.scores import balanced_batch
from tests.pruning.toys import tiny_net, trainer

pytestmark = pytest.mark.unit

CLASSES, SEED = 3, 7


def labelled(n=60, size=5, image=8):
    """Images whose first number is their index; a third of the labels is 0, the rest unequal."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 3, image, image, generator=g)
    y = torch.tensor([(0, 0, 1, 2, 2, 2)[i % 6] for i in range(n)])
    x[:, 0, 0, 0] = torch.arange(n)
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)


def test_every_class_in_rounds_and_nothing_twice():
    loader = labelled()
    before = torch.get_rng_state()
    x, y = balanced_batch.balanced(loader, 4, CLASSES, SEED)
    assert y.tolist() == [0, 1, 2] * 4
    index = x[:, 0, 0, 0].long()
    assert len(set(index.tolist())) == 12
    assert torch.equal(loader.dataset.tensors[1][index], y)
    assert torch.equal(before, torch.get_rng_state())
    again = balanced_batch.balanced(labelled(), 4, CLASSES, SEED)
    assert torch.equal(again[0], x)
    assert not torch.equal(balanced_batch.balanced(loader, 4, CLASSES, SEED + 1)[0], x)


def test_batches_of_views_keep_their_shape():
    loader = labelled()
    loader.collate_fn = lambda items: (
        torch.arange(len(items)),
        [torch.stack([x for x, _ in items]), torch.stack([x.flip(-1) for x, _ in items])],
        torch.stack([y for _, y in items]),
        "note",
    )
    indexes, (first, second), targets, note = balanced_batch.balanced(loader, 2, CLASSES, SEED)
    assert (len(indexes), targets.tolist(), note) == (6, [0, 1, 2] * 2, "note")
    assert torch.equal(first.flip(-1), second)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(1)])


def test_data_that_cannot_be_drawn_from():
    with pytest.raises(ConfigError, match=r"per_class=11: of 3 classes, 1 have fewer.*class 1 "):
        balanced_batch.balanced(labelled(), 11, CLASSES, SEED)
    with pytest.raises(ConfigError, match="no labels from 0 to 1, one for each output"):
        balanced_batch.balanced(labelled(), 2, 2, SEED)
    plain = DataLoader(TensorDataset(torch.randn(4, 3)))
    with pytest.raises(ConfigError, match="hold no labels"):
        balanced_batch.balanced(plain, 1, CLASSES, SEED)
    for loader in (DataLoader(Stream()), [torch.zeros(1)]):
        with pytest.raises(ConfigError, match=r"samples_per_class draws samples by their index"):
            balanced_batch.balanced(loader, 1, CLASSES, SEED)


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = tiny_net()
        self.classifier = nn.Linear(8, CLASSES)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.classifier(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_grasp_with_labels_scores_the_drawn_samples():
    """Against the scores computed here, on the parts that memory allows: 3 of 5, 5 and 5."""
    torch.manual_seed(0)
    model = Classifier()
    plain = copy.deepcopy(model)
    loader = labelled()
    section = {"name": "grasp", "final": 0.7, "temperature": 200, "samples_per_class": 5}
    callback = sparsify(model, section | {"seed": SEED})
    trainer(epochs=1).fit(model, loader)
    x, y = balanced_batch.balanced(loader, 5, CLASSES, SEED)
    weights = [plain.backbone[i].weight for i in (0, 3, 5, 9)]
    total = sum(
        nn.functional.cross_entropy(plain.classifier(plain.backbone(x[p])) / 200, y[p]) / 3
        for p in (slice(0, 5), slice(5, 10), slice(10, 15))
    )
    trained = [*weights, plain.classifier.weight]
    grads = torch.autograd.grad(total, trained, create_graph=True)
    inner = sum((g.detach() * g).sum() for g in grads)
    products = torch.autograd.grad(inner, weights)
    scores = torch.cat([(w * p).flatten() for w, p in zip(weights, products, strict=True)])
    kept = round(0.3 * len(scores))
    expected = torch.zeros(len(scores), dtype=torch.bool)
    expected[scores.argsort(descending=True)[:kept]] = True
    found = torch.cat([m.flatten() for m in callback.pruner.online.masks.values()])
    assert int(found.sum()) == kept
    assert (found ^ expected).sum() <= 2  # the last bit of a sum may differ


def test_samples_come_with_a_temperature():
    assert build("grasp").samples_per_class == 0
    assert build({"name": "grasp", "temperature": 200}).samples_per_class == 25
    config = {"name": "grasp", "temperature": 200, "samples_per_class": 0}
    assert build(config).samples_per_class == 0
    with pytest.raises(ConfigError, match="samples_per_class=-1 must not be negative"):
        build({"name": "grasp", "samples_per_class": -1})
