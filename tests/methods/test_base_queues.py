# SPDX-License-Identifier: MIT
"""Queues against a Python list, heads against their listed layers."""

import pytest
import torch
from torch import nn

from solo.errors import ConfigError
from solo.methods.heads import mlp, momentum_pair, simsiam_projector, spread
from solo.methods.queues import NeighbourQueueMixin, QueueMixin

pytestmark = pytest.mark.unit


def test_queue_is_first_in_first_out_along_the_slots():
    queue = QueueMixin()
    queue.register_queue((2, 3, 6), slot_dim=2, unit_dim=1)
    torch.testing.assert_close(queue.queue.norm(dim=1), torch.ones(2, 6))
    slots = [queue.queue[:, :, i].clone() for i in range(6)]
    for step in range(5):
        batch = torch.randn(2, 3, 2, requires_grad=True)
        queue.enqueue(batch)
        for i in range(2):
            slots[(2 * step + i) % 6] = batch[:, :, i].detach()
        assert torch.equal(queue.queue, torch.stack(slots, dim=2))
        assert queue.queue_ptr.tolist() == [(2 * step + 2) % 6]
    assert not queue.queue.requires_grad
    assert list(queue.state_dict()) == ["queue", "queue_ptr"]


def test_queue_size_must_be_a_multiple_of_the_batch():
    queue = QueueMixin()
    queue.register_queue((8, 3), slot_dim=0, unit_dim=1)
    with pytest.raises(AssertionError, match=r"queue_size=8 must be a multiple.*use 9"):
        queue.enqueue(torch.randn(3, 3))
    with pytest.raises(ConfigError, match="use 16"):
        queue.enqueue(torch.randn(16, 3))


def test_reloaded_queue_goes_on_where_it_was():
    first, second = QueueMixin(), QueueMixin()
    for queue in (first, second):
        queue.register_queue((6, 3), slot_dim=0, unit_dim=1)
    first.enqueue(torch.randn(2, 3))
    second.load_state_dict(first.state_dict())
    batch = torch.randn(2, 3)
    first.enqueue(batch)
    second.enqueue(batch)
    assert torch.equal(first.queue, second.queue)


def test_neighbours_by_brute_force():
    memory = NeighbourQueueMixin()
    memory.register_neighbours(10, 4, index=-1)
    assert list(memory.state_dict()) == ["queue", "queue_y", "queue_index", "queue_ptr"]
    assert memory.queue_y.tolist() == [-1] * 10
    z, y = nn.functional.normalize(torch.randn(5, 4), dim=1), torch.arange(5)
    memory.enqueue(z, y=y, index=y + 100)
    assert memory.queue_y.tolist() == [0, 1, 2, 3, 4] + [-1] * 5
    assert memory.queue_index.tolist() == [100, 101, 102, 103, 104] + [-1] * 5
    memory.dequeue_and_enqueue(z, y)
    assert memory.queue_y.tolist() == [0, 1, 2, 3, 4] * 2
    query = torch.randn(3, 4)
    slots, features = memory.find_nn(query)
    for row, slot, feature in zip(query, slots, features, strict=True):
        similarities = [float(row @ stored) for stored in memory.queue]
        assert max(similarities) == pytest.approx(similarities[int(slot)])
        assert torch.equal(feature, memory.queue[slot])


def kinds(sequential):
    return [type(layer).__name__.replace("BatchNorm1d", "BN") for layer in sequential]


def test_mlp_layers():
    assert kinds(mlp(3, 4, 5, norm=False)) == ["Linear", "ReLU", "Linear"]
    assert kinds(mlp(3, 4, 4, 5)) == ["Linear", "BN", "ReLU", "Linear", "BN", "ReLU", "Linear"]
    head = mlp(3, 4, 5, bias=False, activation=nn.GELU, last_norm="plain")
    assert kinds(head) == ["Linear", "BN", "GELU", "Linear", "BN"]
    assert head[0].bias is head[3].bias is None
    assert head[1].affine
    assert not head[4].affine
    assert mlp(3, 4, 5, bias=False, last_bias=True)[3].bias is not None
    assert mlp(3, 4, 5, last_norm="affine")[4].affine


def test_simsiam_projector():
    head = simsiam_projector(3, 4, 5)
    assert kinds(head) == ["Linear", "BN", "ReLU", "Linear", "BN", "ReLU", "Linear", "BN"]
    assert [head[i].bias is None for i in (0, 3, 6)] == [True, True, False]
    assert not head[6].bias.requires_grad
    assert not head[7].affine


def test_momentum_pair_is_two_networks_with_equal_weights():
    online, momentum = momentum_pair(lambda: nn.Linear(2, 3))
    assert torch.equal(online.weight, momentum.weight)
    assert online.weight is not momentum.weight
    assert not momentum.weight.requires_grad


def test_spread():
    constant = torch.ones(8, 4)
    assert spread([constant, constant]).item() == pytest.approx(0, abs=1e-6)
    rows = torch.randn(4000, 16)
    assert spread([rows]).item() == pytest.approx(16**-0.5, rel=0.05)
    assert not spread([torch.randn(4, 2, requires_grad=True)]).requires_grad
