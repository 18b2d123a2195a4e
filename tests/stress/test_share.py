# SPDX-License-Identifier: MIT
"""A small share of the stress tests, for every run of the suite. All of them: `-m slow`, or

python -m tests.stress.kills --kills 20
python -m tests.stress.fuzz_config --tries 500
python -m tests.stress.damage --bytes 500 --content 60
python -m tests.stress.disks
python -m tests.stress.bad_input
"""

import signal

import pytest

from tests.stress import damage, disks, farm, fuzz_config
from tests.stress.kills import stop_at_random

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module", autouse=True)
def _preloaded():
    farm.preload()


@pytest.mark.parametrize("signum", [signal.SIGKILL])
def test_a_stopped_run_ends_like_a_straight_one(signum, tmp_path):
    tally = stop_at_random("pair-steps", 1, tmp_path, seed=5, signals=(signum,))
    assert tally.problems == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.kwargs.momentum", "text"),
        ("check_val_every_n_epoch", 0),
        ("name", "x" * 300),
        ("seed", 2**32),
        ("optimizer.classifier_lr", float("inf")),
        ("method_kwargs.temperature", 0.0),
    ],
)
def test_a_wrong_value_is_refused_by_name(key, value, tmp_path):
    tally = fuzz_config.Tally()
    fuzz_config.attempt("main_pretrain.py", key, value, [], tmp_path, tally)
    assert (tally.problems, tally.refused) == ([], 1)


def test_code_in_a_yaml_is_refused(tmp_path):
    marker = tmp_path / "ran"
    call = f"{{_target_: os.mkdir, path: {marker}}}"
    arguments = [*fuzz_config.TINY, f"++hydra.callbacks.x={call}"]
    ended = farm.run("main_pretrain.py", arguments, tmp_path)
    assert ended.code == 2
    assert "hydra.callbacks.x._target_=os.mkdir" in ended.text
    assert "++allow_code=True" in ended.text
    assert not marker.exists()


def test_damaged_checkpoints_are_read_as_they_were_or_refused(tmp_path):
    folder = damage.straight(tmp_path / "run")
    tried, problems = damage.damage_bytes(next(folder.rglob("*-ep=2.ckpt")), 25, tmp_path)
    assert (tried, problems) == (25, [])
    assert damage.change_content(folder, 3, seed=4, say=lambda said: None) == []


def test_a_full_disk_is_named_and_loses_nothing(tmp_path):
    assert disks.full("pair", 150, tmp_path) == ""
