# SPDX-License-Identifier: MIT
"""Which run is continued: the one whose fingerprint is the same, and no other."""

import copy
import json
import os
import warnings

import pytest
from omegaconf import OmegaConf

from solo.args.pretrain import parse_cfg
from solo.utils.auto_resumer import AutoResumer, differences, fingerprint
from tests.programs.tiny import PRETRAIN, config

pytestmark = pytest.mark.unit


def run(folder, cfg, run_id="0", age_hours=0.0):
    """A run's folder as Checkpointer leaves it."""
    folder.mkdir(parents=True)
    args = {**OmegaConf.to_container(cfg), "wandb_run_id": run_id}
    (folder / "args.json").write_text(json.dumps(args))
    checkpoint = folder / f"x-{run_id}-ep=1.ckpt"
    checkpoint.touch()
    return checkpoint


def parsed(**overrides):
    return parse_cfg(config(PRETRAIN, **overrides))


def test_defaults_of_the_section():
    made = AutoResumer.add_and_assert_specific_cfg(OmegaConf.create({}))
    assert made.auto_resume == {"enabled": False, "max_hours": 36}


def test_nothing_to_resume(tmp_path):
    assert AutoResumer(tmp_path).find_checkpoint(parsed()) == (None, None)
    assert AutoResumer(tmp_path / "absent").find_checkpoint(parsed()) == (None, None)


def test_the_newest_of_the_same_runs(tmp_path):
    run(tmp_path / "0", parsed(), "a")
    newest = run(tmp_path / "1", parsed(), "b")
    run(tmp_path / "2", parsed(seed=6), "c")
    assert AutoResumer(tmp_path).find_checkpoint(parsed()) == (newest, "b")


def test_the_newest_checkpoint_of_a_folder(tmp_path):
    old = run(tmp_path / "0", parsed())
    new = old.with_name("x-0-ep=2.ckpt")
    new.touch()
    os.utime(old, (1, 1))
    assert AutoResumer(tmp_path).find_checkpoint(parsed())[0] == new


def test_old_checkpoints_are_passed_over(tmp_path):
    run(tmp_path / "0", parsed())
    assert AutoResumer(tmp_path, max_hours=0).find_checkpoint(parsed()) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"method_kwargs__temperature": 0.1},
        {"augmentations__0__gaussian_blur__prob": 0.1},
        {"optimizer__kwargs": {"momentum": 0.8}},
        {"scheduler__warmup_epochs": 2},
        {"momentum__base_tau": 0.8},
        {"data__fraction": 0.5},
        {"sparse": {"name": "synccp", "final": 0.9}},
        {"devices": [0, 1]},
        {"precision": "bf16-mixed"},
        {"name": "other"},
    ],
)
def test_whatever_changes_the_result_is_another_run(tmp_path, change):
    run(tmp_path / "0", parsed())
    other = config(PRETRAIN)
    for key, value in change.items():
        OmegaConf.update(other, key.replace("__", "."), value, force_add=True)
    other.pop("sparse", None)
    other = parse_cfg(other)
    if "sparse" in change:
        other.sparse = change["sparse"]
    assert AutoResumer(tmp_path).find_checkpoint(other) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"data__num_workers": 3},
        {"checkpoint__frequency": 7},
        {"devices": [3]},
        {"devices": 1},
        {"enable_progress_bar": True},
        {"data__train_path": "/local/disk"},
    ],
)
def test_whatever_does_not_is_the_same_run(tmp_path, change):
    checkpoint = run(tmp_path / "0", parsed())
    assert AutoResumer(tmp_path).find_checkpoint(parsed(**change))[0] == checkpoint


def test_paths_count_for_datasets_of_ones_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = (
        parsed(data={"dataset": "custom", "train_path": str(tmp_path / name)}) for name in "ab"
    )
    assert differences(fingerprint(one), fingerprint(other)) == ["data.train_path"]


def test_a_shorter_run_is_named_with_the_way_to_extend_it(tmp_path):
    checkpoint = run(tmp_path / "0", parsed())
    with pytest.warns(UserWarning, match="max_epochs=1.*resume_from_checkpoint") as caught:
        assert AutoResumer(tmp_path).find_checkpoint(parsed(max_epochs=9)) == (None, None)
    assert str(checkpoint) in str(caught[0].message)


def test_unreadable_args_are_passed_over(tmp_path):
    good = run(tmp_path / "0", parsed())
    run(tmp_path / "1", parsed())
    (tmp_path / "1" / "args.json").write_text('{"name": ')
    with pytest.warns(UserWarning, match="not readable"):
        assert AutoResumer(tmp_path).find_checkpoint(parsed())[0] == good


def test_configurations_without_sections(tmp_path):
    cfg = OmegaConf.create({"name": "x", "method": "y", "data": {"dataset": "cifar10"}})
    checkpoint = run(tmp_path / "0", cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert AutoResumer(tmp_path, 1).find_checkpoint(copy.deepcopy(cfg))[0] == checkpoint
