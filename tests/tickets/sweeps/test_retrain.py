# SPDX-License-Identifier: MIT
"""Training under the masks of a sweep: from which weights, under which masks."""

import pytest
import torch

from solo.errors import DataError
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.config import RetrainConfig
from sparse_ext.tickets.program import tickets
from sparse_ext.tickets.sweeps import random_masks
from sparse_ext.tickets.sweeps.retrain import masks_of
from tests.tickets.tiny import Stop, config

pytestmark = pytest.mark.unit
LABELS = {"method": "supervised", "max_epochs": 1, "name": "labels"}


def section(run, **changes):
    return {"source": str(run.folder), "levels": [2], **changes}


@pytest.mark.parametrize("init", ["winning_ticket", "final", "random_reinit"])
def test_starts(finished, cwd, monkeypatch, init):
    seen = []

    def stop(cfg, model, *_, **__):
        seen.append({k: v.clone() for k, v in model.backbone.state_dict().items()})
        raise Stop

    monkeypatch.setattr("solo.programs.training.fit", stop)
    with pytest.raises(Stop):
        tickets(config(retrain=section(finished, init=init), **LABELS))
    ours = cwd / "tickets/labels/seed-5/level_02"
    source = {
        "winning_ticket": finished.level(0).rewind,
        "final": finished.level(2).final,
        "random_reinit": ours / "initial.safetensors",
    }[init]
    masks = finished.level(2).masks()
    for key, value in run_folder.load_weights(source).items():
        name = key.removesuffix(".weight")
        assert torch.equal(seen[0][key], value * masks[name] if name in masks else value)
    assert all(torch.equal(seen[0][f"{n}.mask"], m) for n, m in masks.items())


def test_trains_labels_under_the_mask(finished, cwd):
    run = tickets(config(retrain=section(finished, init="random_reinit", levels=[]), **LABELS))
    assert [level.number for level in run.finished()] == [0, 1, 2]
    state, masks = run_folder.load_weights(run.level(2).final), finished.level(2).masks()
    assert all(not state[f"{n}.weight"][~m].any() for n, m in masks.items())
    assert run.level(2).masks().checksum() == masks.checksum()
    assert run.facts()["kind"] == "retrain"
    with pytest.raises(DataError, match="of kind 'retrain', not a sweep"):
        tickets(config(retrain=section(run), **LABELS))


def test_random_kinds(finished):
    masks = finished.level(2).masks()
    kinds = {
        kind: masks_of(
            RetrainConfig(source="x", init="random_reinit", masks=kind), finished, 2, seed=5
        )
        for kind in ("random_global", "random_layer", "natural")
    }
    for found in kinds.values():
        assert sum(int(m.sum()) for m in found.values()) == masks.nnz
        assert not all(torch.equal(found[n], masks[n]) for n in masks)
    weights = run_folder.load_weights(finished.level(0).final)
    dense = {name: weights[f"{name}.weight"] for name in masks}
    expected = random_masks.natural(masks, dense, 5, 2)
    assert all(torch.equal(kinds["natural"][n], expected[n]) for n in masks)


def test_levels_that_do_not_exist(finished, cwd):
    with pytest.raises(DataError, match=r"no complete level 7; complete: \[0, 1, 2\]"):
        tickets(config(retrain=section(finished, levels=[7]), **LABELS))
