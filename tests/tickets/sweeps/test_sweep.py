# SPDX-License-Identifier: MIT
"""Sweeps through the program: levels, rewinding, skipping, resuming, mistakes (47 and 48)."""

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from solo.checkpoints import load_pretrained
from solo.checkpoints.files import read_checkpoint
from solo.errors import CheckpointError, ConfigError, DataError, SoloError
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.program import tickets
from sparse_ext.tickets.run_folder import Level, RunFolder
from sparse_ext.tickets.sweeps import iterative_pruning
from sparse_ext.tickets.sweeps.sweep import rewind_step
from tests.tickets.tiny import BASE, Stop, config, sweep_section

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


def copied(run, folder):
    shutil.copytree(run.folder, folder / "tickets/tiny/seed-5")
    return RunFolder(folder / "tickets/tiny/seed-5")


def newest(level):
    return max(level.train.glob("*/*/*.ckpt"), key=lambda path: path.stat().st_mtime)


def checkpoint(level):
    return read_checkpoint(newest(level))


def started(level, monkeypatch, cfg=None):
    """The method as the level's training built it, before its first step."""
    built = []

    def stop(cfg, model, *_, **__):
        built.append(model)
        raise Stop

    monkeypatch.setattr("solo.programs.training.fit", stop)
    (level.folder / run_folder.DONE).unlink()
    with pytest.raises(Stop):
        tickets(cfg or config(sweep_section()))
    return built[0]


# -- a finished sweep --------------------------------------------------------------------------


def test_levels_hold_what_they_should(finished):
    levels = finished.finished()
    assert [level.number for level in levels] == [0, 1, 2]
    n = levels[0].done["n"]
    counts = [n]
    for _ in range(2):
        counts.append(counts[-1] - iterative_pruning.pruned_count(counts[-1], 0.2))
    assert [level.done["nnz"] for level in levels] == counts
    masks = [level.masks() for level in levels]
    assert masks[0].density == 1
    for before, after in itertools.pairwise(masks):
        assert all((before[name] | ~after[name]).all() for name in after)
    for level in levels:
        assert {"val_acc1", "val_rotation_acc", "val_loss"} <= set(level.done["metrics"])
        state = run_folder.load_weights(level.final)
        assert all(not state[f"{n}.weight"][~m].any() for n, m in level.masks().items())


def test_masks_prune_the_level_before_by_magnitude(finished):
    for number in (1, 2):
        before = finished.level(number - 1)
        weights = run_folder.load_weights(before.final)
        kept_before, kept = before.masks(), finished.level(number).masks()
        both = [(weights[f"{n}.weight"].abs(), kept_before[n], kept[n]) for n in kept]
        smallest = min(float(w[k].min()) for w, _, k in both if k.any())
        largest = max(float(w[b & ~k].max()) for w, b, k in both if (b & ~k).any())
        assert smallest >= largest


def test_rewind_point_is_the_dense_run_after_two_steps(finished, cwd):
    """The same run cut after one epoch of two steps has these weights, statistics included."""
    level = finished.level(0)
    initial, rewind = run_folder.load_weights(level.initial), run_folder.load_weights(level.rewind)
    assert not torch.equal(initial["conv1.weight"], rewind["conv1.weight"])
    assert int(initial["bn1.num_batches_tracked"]) == 0
    assert int(rewind["bn1.num_batches_tracked"]) == 2
    from solo.programs.pretrain import pretrain

    cfg = config(max_steps=2)
    dense = pretrain(cfg).lightning_module.backbone.state_dict()
    assert all(torch.equal(dense[key], value) for key, value in rewind.items())


def test_next_level_starts_from_the_rewound_encoder_and_a_fresh_head(finished, cwd, monkeypatch):
    run = copied(finished, cwd)
    rewind, masks = run_folder.load_weights(run.level(0).rewind), run.level(1).masks()
    model = started(run.level(1), monkeypatch)
    state = model.backbone.state_dict()
    for key, value in rewind.items():
        name = key.removesuffix(".weight")
        wanted = value * masks[name] if name in masks else value
        assert torch.equal(state[key], wanted), key  # batch norm and its statistics, too
    head = checkpoint(run.level(0))["state_dict"]["rotation_head.weight"]
    assert not torch.equal(model.rotation_head.weight, head)


def test_complete_levels_are_skipped_and_more_can_follow(finished, cwd):
    run = copied(finished, cwd)
    before = {p: p.stat().st_mtime_ns for p in run.folder.rglob("*.safetensors")}
    tickets(config(sweep_section(levels=3)))
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert [level.number for level in run.finished()] == [0, 1, 2, 3]


def test_a_level_that_was_cut_off_is_trained_again_with_the_same_result(finished, cwd):
    run = copied(finished, cwd)
    level = run.level(1)
    wanted = run_folder.load_weights(level.final)
    level.final.write_bytes(level.final.read_bytes()[:1000])
    shutil.rmtree(level.train)
    assert level.done is None
    tickets(config(sweep_section()))
    assert all(torch.equal(v, wanted[k]) for k, v in run_folder.load_weights(level.final).items())


def test_killed_between_training_and_record(finished, cwd):
    """The training is complete, nothing else is: its checkpoint and metrics are enough."""
    run = copied(finished, cwd)
    level = run.level(2)
    wanted, record = run_folder.load_weights(level.final), level.done
    (level.folder / run_folder.DONE).unlink()
    level.final.unlink()
    tickets(config(sweep_section()))
    assert all(torch.equal(v, wanted[k]) for k, v in run_folder.load_weights(level.final).items())
    assert level.done["metrics"] == record["metrics"]


def test_a_level_goes_on_from_its_checkpoint(finished, cwd, monkeypatch):
    """A killed level finds its own training run again, though its mask file is written anew."""
    run = copied(finished, cwd)
    level = run.level(2)
    found = []
    (level.folder / run_folder.DONE).unlink()

    def stop(cfg, *_, **__):
        from solo.programs.training import find_resume

        found.append(find_resume(cfg, level.train / "rotnet").path)
        raise Stop

    monkeypatch.setattr("solo.programs.training.fit", stop)
    for _ in range(4):  # the order of a file's metadata differs from time to time
        with pytest.raises(Stop):
            tickets(config(sweep_section()))
    assert {path.resolve() for path in found} == {newest(level)}


def test_checkpoints_evaluate_by_themselves(finished):
    level = finished.level(2)
    encoder = load_pretrained(level.folder / level.done["run"])
    state = encoder.state_dict()
    assert all(torch.equal(state[k], v) for k, v in run_folder.load_weights(level.final).items())


# -- other ways --------------------------------------------------------------------------------


def test_random_reinit_draws_anew_for_each_level(cwd, finished, monkeypatch):
    section = sweep_section(reset="random_reinit", levels=2, layers=["layer1.*"])
    run = tickets(config(section, max_epochs=1, tickets__rewind_samples=0))
    assert set(run.level(1).masks()) == {f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    one, two = (run_folder.load_weights(run.level(k).initial) for k in (1, 2))
    first = run_folder.load_weights(run.level(0).initial)
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])
    assert not torch.equal(one["conv1.weight"], first["conv1.weight"])
    assert not one["bn1.running_mean"].any()
    rewind = run_folder.load_weights(run.level(0).rewind)  # 0 samples: the initialisation itself
    assert all(torch.equal(rewind[k], v) for k, v in first.items())


MOMENTUM = {
    "method": "byol",
    "method_kwargs": {"proj_hidden_dim": 8, "proj_output_dim": 4, "pred_hidden_dim": 8},
    "momentum": {"base_tau": 0.9, "final_tau": 1.0},
    "augmentations": [{**BASE["augmentations"][0], "num_crops": 2}],
}


def test_a_method_with_momentum_encoder(cwd):
    run = tickets(
        config(sweep_section(levels=1), max_epochs=1, tickets__rewind_samples=16, **MOMENTUM)
    )
    state = checkpoint(run.level(1))["state_dict"]
    for name, mask in run.level(1).masks().items():
        for encoder in ("backbone", "momentum_backbone"):
            assert not state[f"{encoder}.{name}.weight"][~mask].any()
            assert torch.equal(state[f"{encoder}.{name}.mask"], mask)


def test_start_from_given_weights(cwd, finished):
    start = finished.level(0).final
    run = tickets(config(sweep_section(levels=1, start=str(start)), max_epochs=1, name="b",
                         tickets__rewind_samples=0))  # fmt: skip
    wanted = run_folder.load_weights(start)
    assert all(
        torch.equal(wanted[k], v) for k, v in run_folder.load_weights(run.level(0).initial).items()
    )


@pytest.mark.parametrize(
    ("samples", "changes", "steps"),
    [
        (3 * 1_281_167, {"optimizer__batch_size": 192, "devices": [0] * 8}, 2502),
        (50_000, {"optimizer__batch_size": 512}, 97),
        (64, {"accumulate_grad_batches": 2}, 2),
        (0, {}, 0),
    ],
)
def test_rewind_points_in_steps(samples, changes, steps):
    assert rewind_step(config(**changes), samples) == steps


# -- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (config(), "neither 'tickets' nor 'retrain'"),
        (config({}, {"source": "x"}), "both 'tickets' and 'retrain'"),
        (config({"levels": 0}), "a sweep without levels"),
        (config({"reset": "winning_tickets"}), "Did you mean 'winning_ticket'"),
        (config({"rate": 1.0}), "tickets.rate=1.0"),
        (config({"level": 3}), "Unknown key tickets.level. Did you mean 'levels'"),
        (config({"layers": ["conv9"]}), "no prunable layer is called 'conv9'"),
        (config({"layers": ["conv1"], "first_convs": 1}), "exclude each other"),
        (config({}, sparse={"name": "gmp"}), "does not go with this section"),
        (config({}, optimizer__nam="sgd"), r"unknown key 'optimizer\.nam'"),
        (config(retrain={"source": "nowhere"}), "nowhere: no run folder of tickets"),
        (config(retrain={"init": "final"}), "retrain.source is missing"),
        (config(retrain={"source": "x", "init": "rewind"}), "retrain.init='rewind' is unknown"),
        (config(retrain={"source": "x", "masks": "natural"}), "a random mask has no ticket"),
    ],
)
def test_mistakes_have_names(cwd, cfg, message):
    with pytest.raises(SoloError, match=message):
        tickets(cfg)
    assert not list(cwd.rglob("*.safetensors"))


def test_a_rewind_point_after_the_end(cwd):
    with pytest.raises(ConfigError, match=r"rewind point is 100 optimizer steps.* has only 4"):
        tickets(config(sweep_section(rewind_samples=1600)))


def test_another_configuration_in_the_same_folder(finished, cwd):
    copied(finished, cwd)
    with pytest.raises(ConfigError, match=r"holds a run with optimizer.lr=0.03125, .* 0.0625"):
        tickets(config(sweep_section(), optimizer__lr=1.0))
    with pytest.raises(ConfigError, match=r"tickets.rate=0.2, .* 0.3"):
        tickets(config(sweep_section(rate=0.3)))


def test_a_second_program_in_the_same_folder(finished, cwd):
    run = copied(finished, cwd)
    with run.alone(), pytest.raises(SoloError, match="is at work in"):
        tickets(config(sweep_section()))


def test_weights_of_another_encoder(finished, cwd):
    section = sweep_section(start=str(finished.level(0).final))
    with pytest.raises(CheckpointError, match="does not fit this WidthResNet"):
        tickets(config(section, name="c", backbone__kwargs__width=3))


def test_wrong_folders_and_damage(finished, cwd):
    with pytest.raises(DataError, match=r"Did you mean '.*seed-5'"):
        RunFolder(finished.folder.parent).facts()
    run = copied(finished, cwd)
    (run.folder / run_folder.RUN).write_text("{")
    with pytest.raises(DataError, match="damaged"):
        run.facts()
    for broken in ("{", "[]", '{"files": {"mask.safetensors": 1}}', '{"files": 3}'):
        (run.level(1).folder / run_folder.DONE).write_text(broken)
        assert run.level(1).done is None
    assert Level(cwd / "level_07").number == 7


# -- a kill ------------------------------------------------------------------------------------


def _command(folder):
    overrides = [f"{k}={v}" for k, v in {
        "name": "k", "backbone.kwargs.width": 2, "max_epochs": 4, "optimizer.batch_size": 16,
        "+limit_train_batches": 12, "+limit_val_batches": 1, "+enable_progress_bar": "false",
        "+enable_model_summary": "false", "tickets.levels": 2, "tickets.rewind_samples": 96,
        "tickets.dir": folder, "+tickets": "digits", "accelerator": "cpu",
    }.items()]  # fmt: skip
    program = ["main_tickets.py", "--config-path", "scripts/pretrain/digits"]
    return [sys.executable, *program, "--config-name", "rotnet.yaml", *overrides]


@pytest.mark.slow
def test_sweep_killed_in_level_two_ends_as_a_straight_one(tmp_path):
    """SIGKILL while the last level trains, between its first and its last checkpoint."""
    straight, killed = (tmp_path / name / "k/seed-5" for name in ("straight", "killed"))
    subprocess.run(_command(straight.parents[1]), cwd=ROOT, check=True, capture_output=True)
    command = _command(killed.parents[1])
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 300
    while not list(killed.glob("level_02/train/*/*/*.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert RunFolder(killed).level(2).done is None
    kept = RunFolder(killed).level(1).final.stat().st_mtime_ns
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert RunFolder(killed).level(1).final.stat().st_mtime_ns == kept
    for number in range(3):
        one, other = (RunFolder(folder).level(number) for folder in (straight, killed))
        weights = run_folder.load_weights(other.final)
        assert all(
            torch.equal(weights[k], v) for k, v in run_folder.load_weights(one.final).items()
        )
        assert other.done["metrics"] == one.done["metrics"]
        assert other.done["checksum"] == one.done["checksum"]
    # it went on rather than starting the level anew: one training run in its folder
    assert len(list(killed.glob("level_02/train/*/*"))) == 1
    assert json.loads((killed / run_folder.RUN).read_text())["kind"] == "tickets"
