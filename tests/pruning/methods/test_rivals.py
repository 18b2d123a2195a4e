# SPDX-License-Identifier: MIT
"""RigL, GraNet, random, one-shot and ASP against numpy (properties 11, 13, 14, 15)."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from sparse_ext import sparsify
from sparse_ext.allocation import budgets
from sparse_ext.config.sections import build
from sparse_ext.masks.encoder import states_of
from sparse_ext.schedules import Clock, cubic
from tests.pruning.toys import data, pruner_of, toy, trainer

pytestmark = pytest.mark.unit

N = 8 * 3 * 9 + 8 * 8 * 9 + 16 * 8 * 9 + 8 * 16  # the tiny net with its stem


def fake_gradients(pruner, seed):
    """Random gradients on every layer, as numpy too."""
    g = torch.Generator().manual_seed(seed)
    for layer in pruner.online.layers.values():
        layer.weight.grad = torch.randn(layer.weight.shape, generator=g)
    return {n: m.weight.grad.numpy().copy() for n, m in pruner.online.layers.items()}


def step(pruner, seed):
    """One optimizer step's hooks; returns the gradients, old weights and old masks."""
    grads = fake_gradients(pruner, seed)
    weights = {n: w.numpy().copy() for n, w in pruner.online.weights.items()}
    masks = {n: m.numpy().copy() for n, m in pruner.online.masks.items()}
    if pruner.wants_gradients():
        pruner.observe(torch.tensor(True))
    weights_of = [layer.weight for layer in pruner.online.layers.values()]
    pruner.adjust_gradients(torch.optim.SGD(weights_of, 0.1))
    changed = pruner.after_step()
    return changed, grads, weights, masks


def swapped(weight, mask, grad, k):
    """Brute force: the k smallest kept |weight| go, the k largest |grad| of the rest come."""
    mask, weight, grad = mask.ravel().copy(), np.abs(weight).ravel(), np.abs(grad).ravel()
    kept = np.flatnonzero(mask)
    mask[kept[np.argsort(-weight[kept], kind="stable")[len(kept) - k :]]] = False
    off = np.flatnonzero(~mask)
    mask[off[np.argsort(-grad[off], kind="stable")[:k]]] = True
    return mask


def test_rigl_updates_equal_brute_force():
    config = build({"name": "rigl", "final": 0.7, "update_period": 3})
    pruner = pruner_of(config, shared=True)
    pruner.start()
    counts = {n: int(m.sum()) for n, m in pruner.online.masks.items()}
    assert counts == budgets.erk(pruner.online.masks.shapes, 1 - 0.7)
    assert list(counts) == ["0", "3", "5", "9"]
    updates = 0
    for t in range(100):
        changed, grads, weights, masks = step(pruner, t)
        assert changed == (t % 3 == 0 and 0 < t < 75)
        updates += changed
        fraction = 0.15 * (1 + math.cos(math.pi * t / 75))
        for name, now in pruner.online.masks.items():
            expected = masks[name].ravel()
            if changed:
                k = math.floor(fraction * counts[name])
                expected = swapped(weights[name], masks[name], grads[name], k)
            assert np.array_equal(now.numpy().ravel(), expected)
            assert int(now.sum()) == counts[name]
            value = pruner.online.weights[name].numpy()
            stays = masks[name] & now.numpy()
            assert np.array_equal(value[stays], weights[name][stays])
            assert not value[~stays].any()
    assert updates == 24
    assert not pruner.online.masks["0"].all()


def test_rigl_defaults():
    assert (build("rigl").update_period, build("rigl").drop_start) == (None, 0.3)
    assert pruner_of(build("rigl")).period == 1
    assert pruner_of(build("rigl"), Clock(195_000, 1000, 195)).period == 100
    assert pruner_of(build("rigl_itop"), Clock(195_000, 1000, 195)).period == 1000
    itop = build("rigl_itop")
    assert (itop.update_end, itop.skip_step, itop.drop_start) == (1.0, False, 0.5)


@pytest.mark.parametrize(
    ("name", "moves"), [("rigl", False), ("rigl_itop", True), ("granet", True)]
)
def test_whether_an_update_step_moves_kept_weights(name, moves):
    """Property 13; regrown weights are zero with zero optimizer state."""
    model = toy(momentum=False)
    section = {"name": name, "final": 0.6, "update_period": 4}
    if name == "granet":
        section["initial"] = 0.6
    callback = sparsify(model, section)
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, run, module, *_):
            layers = callback._encoders[0].layers.values()
            self.before = [(m.weight.detach().clone(), m.mask.clone()) for m in layers]
            self.others = module.predictor.weight.detach().clone()

        def on_train_batch_end(self, run, module, *_):
            t = callback.pruner.t - 1
            layers = callback._encoders[0].layers.values()
            after = [(m.weight.detach(), m.mask) for m in layers]
            pairs = list(zip(after, self.before, strict=True))
            changed = any(not torch.equal(a[1], b[1]) for a, b in pairs)
            same = [torch.equal(a[0][a[1] & b[1]], b[0][a[1] & b[1]]) for a, b in pairs]
            assert torch.equal(module.predictor.weight, self.others) == all(same)
            seen.append((t, changed, all(same)))
            for (_, old), layer in zip(self.before, layers, strict=True):
                grown = layer.mask & ~old
                assert not layer.weight[grown].any()
                for state in states_of(run.optimizers[0], layer.weight):
                    assert not state[~layer.mask | grown].any()

    trainer(epochs=4, callbacks=[Watch()]).fit(model, data())
    due = [(t, changed, still) for t, changed, still in seen if changed]
    assert {t for t, *_ in due} <= {0, 4, 8, 12, 16}
    assert len(due) >= 3
    assert all(still != moves for _, _, still in due)
    assert not any(still for _, changed, still in seen if not changed)


@pytest.mark.parametrize("initial", [0.0, 0.5])
def test_granet_budgets_and_regrowth(initial):
    """Property 14: B(s(j)) exactly; ceil(p nnz_l) regrown per layer; brute force per layer."""
    section = {"name": "granet", "final": 0.9, "initial": initial, "update_period": 5}
    pruner = pruner_of(build(section), shared=True)
    pruner.start()
    assert pruner.kept == [round((1 - initial) * N)]
    n = 50 // 5
    for t in range(100):
        with torch.no_grad():
            for layer in pruner.online.layers.values():
                layer.weight.add_(0.01 * torch.randn_like(layer.weight))
                layer.apply_mask()
        changed, grads, weights, masks = step(pruner, t)
        assert changed == (t % 5 == 0 and t > 0)
        if not changed:
            continue
        budget = round((1 - cubic(initial, 0.9, t // 5, n)) * N)
        assert pruner.kept == [budget]
        flat = np.concatenate([np.abs(w).ravel() for w in weights.values()])
        alive = np.concatenate([m.ravel() for m in masks.values()])
        order = np.argsort(-np.where(alive, flat, -1), kind="stable")[:budget]
        pruned = np.zeros(N, bool)
        pruned[order] = True
        p = 0.005 + 0.495 * (1 + math.cos(math.pi * t / 100)) / 2
        start = 0
        for name, weight in weights.items():
            mask = pruned[start : start + weight.size]
            start += weight.size
            k = math.ceil(p * mask.sum())
            expected = swapped(weight, mask, grads[name], k)
            assert np.array_equal(pruner.online.masks[name].numpy().ravel(), expected)
            anew = masks[name].ravel() & ~mask & expected
            value = pruner.online.weights[name].numpy().ravel()
            assert not value[anew].any()
            assert np.array_equal(value[expected & mask], weight.ravel()[expected & mask])


@pytest.mark.parametrize("name", ["granet", "granet_ssl"])
def test_what_granet_prunes_and_regrows_in_one_update_starts_from_zero(name):
    """As the authors' code: the mask of the pruning half is applied before the other half."""
    model = toy(momentum=name == "granet_ssl")
    section = {"name": name, "final": 0.9, "update_period": 2, "ramp_end": 0.9, "drop_end": 0.4}
    callback = sparsify(model, section)
    counts = {"anew": 0}

    class Watch(Callback):
        """Between the optimizer's step and the mask update; and after that."""

        def on_train_start(self, run, module):
            pruner, after = callback.pruner, callback.pruner.after_step

            def spied(optimizer=None):
                layers = pruner.online.layers
                old = {n: (m.weight.detach().clone(), m.mask.clone()) for n, m in layers.items()}
                moments = {n: states_of(optimizer, m.weight)[0].clone() for n, m in layers.items()}
                t, aim = pruner.t, pruner.sparsities()[0]
                changed = after(optimizer)
                if not changed:
                    return changed
                assert t > 0
                flat = torch.cat([(w * m).abs().flatten() for w, m in old.values()])
                budget = round((1 - aim) * len(flat))
                least = flat.sort(descending=True).values[budget - 1]
                for n, layer in layers.items():
                    weight, mask = old[n]
                    pruned = mask & (weight.abs() < least)
                    anew = pruned & layer.mask
                    stays = mask & ~pruned & layer.mask
                    (moment,) = states_of(optimizer, layer.weight)
                    assert not layer.weight[anew].any()
                    assert not moment[anew].any()
                    assert torch.equal(layer.weight[stays], weight[stays])
                    assert torch.equal(moment[stays], moments[n][stays])
                    counts["anew"] += int(anew.sum())
                return changed

            pruner.after_step = spied

    trainer(epochs=4, callbacks=[Watch()]).fit(model, data())
    assert counts["anew"] > 20


def test_rigl_with_uniform_density_keeps_the_first_layer_dense():
    for name in ("rigl", "rigl_itop"):
        assert build(name).stem_dense is False
        assert build({"name": name, "allocation": "uniform"}).stem_dense is True
        both = {"name": name, "allocation": "uniform", "stem_dense": False}
        assert build(both).stem_dense is False
    pruner = pruner_of(build({"name": "rigl", "allocation": "uniform", "final": 0.8}), shared=True)
    pruner.start()
    assert "0" not in pruner.online.masks
    assert all(abs(d - 0.2) < 0.01 for d in pruner.online.masks.layer_density().values())


def test_granet_without_regrowth_is_gmp():
    """Property 14, p = 0."""
    masks = []
    for section in (
        {"name": "granet", "drop_start": 0.0, "drop_end": 0.0},
        {"name": "gmp", "stem_dense": False, "ramp_end": 0.5},
    ):
        pruner = pruner_of(build({**section, "update_period": 5, "final": 0.9}), shared=True)
        pruner.start()
        for t in range(100):
            step(pruner, t)
        masks.append(pruner.online.masks.checksum())
    assert masks[0] == masks[1]


def test_prune_rate():
    """Property 15."""
    pruner, rates = pruner_of(build("granet"), clock=Clock(100, 10, 10)), []
    for pruner.t in (0, 50, 100):
        rates.append(pruner.prune_rate)
    assert rates == pytest.approx([0.5, 0.2525, 0.005])


def test_granet_ssl_starts_dense_and_its_gap_grows():
    config = build({"name": "granet_ssl", "final": 0.9, "update_period": 5})
    assert config.momentum == (0.0, 0.6)
    assert build({"name": "granet_ssl", "momentum_final": 0.5}).momentum == (0.0, 0.5)
    pruner = pruner_of(config)
    pruner.start()
    n, gaps = pruner.online.masks.n, []
    assert pruner.kept == [n, n]
    for t in range(100):
        if step(pruner, t)[0]:
            gaps.append((pruner.kept[1] - pruner.kept[0]) / n)
    assert 0 < gaps[0] < 0.1
    assert all(b > a - 2 / n for a, b in pairwise(gaps))
    assert gaps[-1] == pytest.approx(0.3, abs=2 / n)
    largest = budgets.global_topk(pruner.values(pruner.momentum), pruner.kept[1])
    assert all(torch.equal(largest[k], m) for k, m in pruner.momentum.masks.items())


@pytest.mark.parametrize("rule", ["erk", "er", "uniform", "global"])
def test_random_masks(rule):
    config = build({"name": "random", "allocation": rule, "final": 0.9, "momentum_final": 0.4})
    pruner = pruner_of(config)
    before = torch.get_rng_state()
    pruner.start()
    assert torch.equal(before, torch.get_rng_state())
    n, online, momentum = pruner.online.masks.n, pruner.online.masks, pruner.momentum.masks
    assert pruner.kept == [round(0.1 * n), round(0.6 * n)]
    assert not any((online[name] & ~momentum[name]).any() for name in online)
    counts = {name: int(mask.sum()) for name, mask in online.items()}
    if rule == "global":
        assert all(abs(c / online[k].numel() - 0.1) < 0.1 for k, c in counts.items())
    else:
        assert counts == getattr(budgets, rule)(online.shapes, 0.1)
    magnitude = torch.cat([w.flatten() for w in pruner.online.latents.values()]).abs()
    chosen = torch.cat([m.flatten() for m in online.values()])
    assert magnitude[chosen].min() < magnitude.median() < magnitude[chosen].max()
    assert not any(pruner.after_step() for _ in range(10))
