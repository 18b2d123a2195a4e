# SPDX-License-Identifier: MIT
"""The loss of each method's step against its formula, from what the model put out."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from solo.methods.base import BaseMethod, BaseMomentumMethod
from tests.methods.helpers import tiny_batch
from tests.methods.zoo_cases import build, cosine, cross_entropy_rows

pytestmark = pytest.mark.unit


def step(model, batch, seed=0):
    """(the method's part of the loss, the outputs that it is made of)."""
    base = BaseMomentumMethod if isinstance(model, BaseMomentumMethod) else BaseMethod
    torch.manual_seed(seed)
    out = base.training_step(copy.deepcopy(model), batch, 0)
    torch.manual_seed(seed)
    return (model.training_step(batch, 0) - out["loss"]).detach(), out


def nearest(z, memory):
    """For each row of `z`, the most similar row of `memory`, by a loop."""
    return [max(range(len(memory)), key=lambda j: float(row @ memory[j])) for row in z.detach()]


def check(loss, expected):
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-5)


def test_supcon():
    model, batch = build("supcon"), tiny_batch()
    batch[2] = torch.tensor([0, 1, 0, 2])
    loss, out = step(model, batch)
    similarity = cosine(torch.cat(out["z"]), torch.cat(out["z"])) / 0.2
    labels = batch[2].tolist() * 2
    terms = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        same = sum(similarity[i, j].exp() for j in others if labels[j] == labels[i])
        terms.append(-(same / sum(similarity[i, j].exp() for j in others)).log())
    check(loss, torch.stack(terms).mean())


def test_nnclr():
    model, batch = build("nnclr"), tiny_batch()
    memory = model.queue.clone()
    loss, out = step(model, batch)
    (z1, z2), (p1, p2) = out["z"], out["p"]
    torch.testing.assert_close(z1.norm(dim=1), torch.ones(4))
    nn1, nn2 = memory[nearest(z1, memory)], memory[nearest(z2, memory)]
    pairs = ((nn1, p2), (nn2, p1))
    halves = [cross_entropy_rows(cosine(nn, p) / 0.2, range(4)) for nn, p in pairs]
    check(loss, torch.stack(halves).mean())
    torch.testing.assert_close(model.queue[:4], z1.detach())
    assert torch.equal(model.queue_y[:4], batch[2])
    assert torch.equal(model.queue[4:], memory[4:])


@pytest.mark.parametrize("name", ["nnbyol", "nnsiam"])
def test_predicted_neighbours(name):
    model, batch = build(name), tiny_batch()
    memory = model.queue.clone()
    loss, out = step(model, batch)
    z1, z2 = out["momentum_z"] if name == "nnbyol" else out["z"]
    torch.testing.assert_close(z1.norm(dim=1), torch.ones(4))
    nn1, nn2 = memory[nearest(z1, memory)], memory[nearest(z2, memory)]
    agreement = [
        cosine(p, nn).diagonal().mean() for p, nn in zip(out["p"], (nn2, nn1), strict=True)
    ]
    total = torch.stack(agreement).sum()
    check(loss, 4 - 2 * total if name == "nnbyol" else -total / 2)
    torch.testing.assert_close(model.queue[:4], z1.detach())


def test_neighbour_accuracy_is_of_view_one_before_the_queue_moves():
    model, batch = build("nnclr"), tiny_batch()
    logged = {}
    model.log_dict = lambda metrics, **_: logged.update(metrics)
    _, out = step(copy.deepcopy(model), batch)
    slots = nearest(out["z"][0], model.queue)
    wanted = batch[2].clone()
    model.queue_y[slots] = wanted
    wrong = next(i for i in range(4) if slots.count(slots[i]) == 1)
    model.queue_y[slots[wrong]] = 99
    expected = sum(model.queue_y[s] == t for s, t in zip(slots, wanted, strict=True)) / 4
    model.training_step(batch, 0)
    assert logged["train_nn_acc"] == expected < 1


def test_ressl():
    model, batch = build("ressl"), tiny_batch()
    memory = model.queue.clone()
    loss, out = step(model, batch)
    student = out["z"][0] @ memory.T / 0.1
    teacher = out["momentum_z"][1] @ memory.T / 0.04
    log_p = student - student.exp().sum(1, keepdim=True).log()
    q = teacher.exp() / teacher.exp().sum(1, keepdim=True)
    check(loss, -(q * log_p).sum() / 4)
    torch.testing.assert_close(model.queue[:4], out["momentum_z"][1])


def sinkhorn(scores):
    q = (scores.double() / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return (q * q.shape[0]).float()


@pytest.mark.parametrize("small", [0, 3])
@pytest.mark.parametrize("queue_starts", [0, 9])
def test_swav(small, queue_starts):
    model = build(
        "swav",
        data__num_small_crops=small,
        method_kwargs={"epoch_queue_starts": queue_starts},
    )
    model.on_train_start()
    assert model.queue.shape == (2, 8, 8)
    model.queue.copy_(F.normalize(torch.randn(2, 8, 8), dim=-1))
    memory = model.queue.clone()
    batch = tiny_batch(small=small)
    loss, out = step(model, batch)
    assert len(out["p"]) == 2 + small
    assignments = []
    for view in range(2):
        scores = out["p"][view]
        if queue_starts == 0:
            directions = F.normalize(model.prototypes.weight_v, dim=1)
            scores = torch.cat([scores, memory[view] @ directions.T])
        assignments.append(sinkhorn(scores.detach())[:4])
    terms = [
        -(assignments[v1] * (out["p"][v2] / 0.1).log_softmax(1)).sum(1).mean()
        for v1 in range(2)
        for v2 in range(2 + small)
        if v1 != v2
    ]
    check(loss, torch.stack(terms).mean())
    torch.testing.assert_close(model.queue[:, :4], torch.stack(out["z"][:2]).detach())
    assert torch.equal(model.queue[:, 4:], memory[:, :4])


@pytest.mark.parametrize("small", [0, 2])
def test_deepclusterv2(small):
    model = build("deepclusterv2", data__num_small_crops=small)
    batch = tiny_batch(small=small)
    batch[0] = torch.tensor([6, 2, 9, 0])
    model.assignments = torch.randint(0, 5, (3, 10))
    model.local_memory_index = torch.full((12,), -1)
    model.local_memory_embeddings = torch.zeros(2, 12, 8)
    out = BaseMethod.training_step(copy.deepcopy(model), batch, 1)
    loss = model.training_step(batch, 1) - out["loss"]
    heads = []
    for h in range(3):
        rows = [
            -(scores[h] / 0.1).log_softmax(1)[i, model.assignments[h, batch[0][i]]]
            for scores in out["p"]
            for i in range(4)
        ]
        heads.append(torch.stack(rows).mean())
    check(loss, torch.stack(heads).mean())
    z = torch.stack(out["z"][:2])
    torch.testing.assert_close(out["p"][1][2], z[1] @ model.prototypes[2].weight.T)
    assert model.local_memory_index.tolist() == [-1] * 4 + [6, 2, 9, 0] + [-1] * 4
    torch.testing.assert_close(model.local_memory_embeddings[:, 4:8], z.detach())
    assert not model.local_memory_embeddings[:, :4].any()


@pytest.mark.parametrize("small", [0, 2])
def test_dino(small):
    model = build("dino", data__num_small_crops=small)
    center = torch.randn(1, 6) / 10
    model.dino_loss_func.center.copy_(center)
    loss, out = step(model, tiny_batch(small=small))
    terms = []
    for s, t in ((s, t) for t in range(2) for s in range(2 + small) if s != t):
        q = ((out["momentum_z"][t] - center) / 0.07).softmax(1)
        terms.append(-(q * (out["z"][s] / 0.1).log_softmax(1)).sum(1).mean())
    check(loss, torch.stack(terms).mean())
    teacher = torch.cat(out["momentum_z"]).mean(0, keepdim=True)
    torch.testing.assert_close(model.dino_loss_func.center, 0.9 * center + 0.1 * teacher)


@pytest.mark.parametrize("iternorm", [True, False])
def test_vibcreg(iternorm):
    model = build("vibcreg", method_kwargs={"iternorm": iternorm})
    loss, out = step(model, tiny_batch())
    z1, z2 = out["z"]
    expected = 25 * (z1 - z2).pow(2).mean()
    for z in (z1, z2):
        expected = expected + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        correlation = torch.corrcoef(z.T)
        expected = expected + 200 * (correlation - torch.eye(8)).pow(2).sum() / 64
    check(loss, expected)


@pytest.mark.parametrize("crops", [2, 4])
@pytest.mark.parametrize("size", [4, 8])
def test_wmse(crops, size):
    model = build(
        "wmse",
        data__num_large_crops=crops,
        optimizer__batch_size=8,
        method_kwargs={"whitening_size": size},
    )
    loss, out = step(model, tiny_batch(n=8, large=crops), seed=5)
    torch.manual_seed(5)
    total, count = 0, 0
    for _ in range(2):
        white = [torch.empty(8, 8) for _ in range(crops)]
        for part in torch.randperm(8).view(-1, size):
            for v, z in enumerate(out["z"]):
                x = z.detach()[part]
                root = torch.linalg.cholesky(0.9 * torch.cov(x.T) + 0.1 * torch.eye(8))
                white[v][part] = (x - x.mean(0)) @ torch.linalg.inv(root).T
        for i in range(crops):
            for j in range(i + 1, crops):
                total = total + 2 - 2 * cosine(white[i], white[j]).diagonal().mean()
                count += 1
    assert count == crops * (crops - 1)
    check(loss, total / count)


@pytest.mark.parametrize("crops", [1, 2])
def test_mae(crops):
    model = build("mae", data__num_large_crops=crops)
    batch = tiny_batch(large=crops)
    loss, out = step(model, batch)
    terms = []
    for image, pred, mask in zip(batch[1], out["pred"], out["mask"], strict=True):
        assert mask.sum(1).tolist() == [2] * 4
        errors = []
        for n in range(4):
            for i, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
                if mask[n, i]:
                    patch = image[n, :, row : row + 4, column : column + 4]
                    target = patch.permute(1, 2, 0).flatten()
                    target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                    errors.append((pred[n, i] - target).pow(2).mean())
        terms.append(torch.stack(errors).mean())
    check(loss, torch.stack(terms).mean())


def all4one_sequence(x):
    """The transformer's input: positions run along the features, frequencies along the five."""
    encoded = x.clone()
    for neighbour in range(5):
        for position in range(x.shape[2]):
            angle = position / 10000 ** ((neighbour // 2 * 2) / 6)
            encoded[:, neighbour, position] += math.cos(angle) if neighbour % 2 else math.sin(angle)
    return encoded


def test_all4one():
    model, batch = build("all4one"), tiny_batch()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    memory = model.queue.clone()
    fresh = copy.deepcopy(model)
    loss, out = step(model, batch)
    z, p, m = out["z"], out["p"], out["momentum_z"]
    nn = [memory[(k @ memory.T).argsort(dim=1, descending=True)[:, :5]] for k in m]
    pairs = ((nn[0], p[1]), (nn[1], p[0]))
    nnclr = [cross_entropy_rows(cosine(n[:, 0], q) / 0.2, range(4)) for n, q in pairs]
    a = [fresh.transformer_encoder(all4one_sequence(n))[:, 0] for n in nn]
    b = []
    for view, n in zip(z, nn, strict=True):
        sequence = torch.cat([fresh.predictor2(view)[:, None], n[:, :4]], dim=1)
        b.append(fresh.transformer_encoder(all4one_sequence(sequence))[:, 0])
    attention = [
        cross_entropy_rows(cosine(x, y) / 0.1, range(4)) for x, y in ((a[0], b[1]), (a[1], b[0]))
    ]
    on, off = 0, 0
    for key, view in ((m[0], z[1]), (m[1], z[0])):
        c = (key / key.norm(dim=0)).T @ (view / view.norm(dim=0))
        on = on + (c.diagonal() - 1).pow(2).mean() / 2
        off = off + c[~torch.eye(8, dtype=torch.bool)].pow(2).mean() / 2
    feature = 10 * (on.sqrt() / 2 + off.sqrt() / 2)
    check(loss, (sum(nnclr) / 2 + sum(attention) / 2 + feature) / 2)
    assert model.queue_index[:4].tolist() == batch[0].tolist()
    assert model.queue_index[4:].tolist() == [-1] * 4
    torch.testing.assert_close(model.queue[:4], m[0])
    slots, features, images, labels = model.find_nn(m[0])
    assert slots.tolist() == [0, 1, 2, 3]
    assert torch.equal(features[:, 0], model.queue[:4])
    assert images[:, 0].tolist() == batch[0].tolist()
    assert labels[:, 0].tolist() == batch[2].tolist()
