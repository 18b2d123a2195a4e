# SPDX-License-Identifier: MIT
"""Runs that are stopped, damaged or started twice end as they should, or say what is wrong."""

import json
import os
import shutil
import signal
import time

import pytest
import torch

from tests.stress import farm, programs
from tests.stress.compare import different
from tests.stress.kills import stop_at_random

pytestmark = pytest.mark.slow
NAMES = ("pair", "pair-steps", "shared", "gated", "linear")


@pytest.fixture(scope="module", autouse=True)
def _preloaded():
    farm.preload()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Folders of finished runs by name of the command."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            programs.prepare(name, folder)
            ended = farm.run(*programs.COMMANDS[name], folder)
            assert ended.code == 0, ended.text
            made[name] = folder
        return made[name]

    return get


def again(name, folder):
    return farm.run(*programs.COMMANDS[name], folder)


def copied(straight, name, tmp_path):
    return shutil.copytree(straight(name), tmp_path / "copy")


def newest(folder):
    return max(folder.rglob("*-ep=2.ckpt"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("name", [*NAMES, "tickets"])
def test_killed_at_random(name, tmp_path):
    tally = stop_at_random(name, int(os.environ.get("STRESS_KILLS", "3")), tmp_path, seed=1)
    print(f"{name}: {tally}")
    assert not tally.problems


@pytest.mark.parametrize("name", ["pair", "gated", "linear"])
def test_asked_to_stop_at_random(name, tmp_path):
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    times = int(os.environ.get("STRESS_KILLS", "3"))
    tally = stop_at_random(name, times, tmp_path, seed=2, signals=signals)
    print(f"{name}: {tally}")
    assert not tally.problems


@pytest.mark.parametrize("name", NAMES)
def test_a_finished_run_says_so(name, straight, tmp_path):
    folder = copied(straight, name, tmp_path)
    ended = again(name, folder)
    assert ended.code == 0
    assert "finished run: nothing is left to train" in ended.text
    assert different(straight(name), folder) == []


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "text": lambda content: b"epoch 3, all is well\n" * 50,
    "cut tail": lambda content: content[:-100],
    "one bit": lambda content: content[:20_000] + bytes([content[20_000] ^ 1]) + content[20_001:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint(damage, straight, tmp_path):
    folder = copied(straight, "pair", tmp_path)
    path = newest(folder)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    ended = again("pair", folder)
    assert ended.code == 0, ended.text
    assert path.name in ended.text
    assert "Going on from" in ended.text
    assert "ep=1.ckpt" in ended.text
    assert different(straight("pair"), folder) == []


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(2)},
        {"state_dict": {"a": torch.ones(2)}, "epoch": "three"},
        {"state_dict": {"a": torch.ones(2)}, "loops": {}, "optimizer_states": []},
        [1, 2],
    ],
)
def test_a_foreign_file_as_newest_checkpoint(content, straight, tmp_path):
    folder = copied(straight, "pair", tmp_path)
    torch.save(content, newest(folder))
    ended = again("pair", folder)
    assert ended.code == 0, ended.text
    assert "Going on from" in ended.text
    assert different(straight("pair"), folder) == []


def test_no_whole_checkpoint_is_one_error(straight, tmp_path):
    folder = copied(straight, "pair", tmp_path)
    for path in folder.rglob("*.ckpt"):
        path.write_bytes(b"")
    ended = again("pair", folder)
    assert (ended.code, ended.traceback) == (2, False)
    assert "move that folder away or set auto_resume.enabled=False" in ended.text


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "two"},
        {"optimizer_states": []},
        {"pytorch-lightning_version": None},
        {"loops": {}},
        {"loops": {"fit_loop": {"epoch_progress": 3}}},
        {"global_step": -4},
        {"sparse_ext": {}},
        {"state_dict": {}},
        {"lr_schedulers": "none"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_wrong_state_that_is_asked_for_by_name(change, straight, tmp_path):
    folder = copied(straight, "pair", tmp_path)
    content = torch.load(newest(folder), weights_only=False)
    key = next((k for k in content if "sparse" in k), None) if "sparse_ext" in change else None
    content |= {key: {}} if key else change
    torch.save(content, folder / "wrong.ckpt")
    script, arguments = programs.COMMANDS["pair"]
    more = ["++resume_from_checkpoint=wrong.ckpt", "max_epochs=4"]
    ended = farm.run(script, [*arguments, *more], folder)
    assert (ended.code, ended.traceback) == (2, False), ended.text
    assert "wrong.ckpt" in ended.text.rpartition("error: ")[2]


def test_damaged_rows_of_metrics_are_left_out(straight, tmp_path):
    folder = copied(straight, "pair", tmp_path)
    newest(folder).unlink()
    path = next(folder.rglob("metrics.csv"))
    path.write_bytes(path.read_bytes() + b"1,2,oops\n\x00\xff,,,\n")
    ended = again("pair", folder)
    assert ended.code == 0, ended.text
    assert "damaged rows are left out" in ended.text
    assert different(straight("pair"), folder) == []


@pytest.mark.parametrize("text", ["", "3", "[1]", "{", '{"optimizer": 3, "num_nodes": {}}'])
def test_a_wrong_args_json_beside_the_run(text, straight, tmp_path):
    folder = copied(straight, "pair", tmp_path)
    neighbour = folder / "trained_models" / "mocov2plus" / "7"
    shutil.copytree(neighbour.parent / "0", neighbour)
    (neighbour / "args.json").write_text(text)
    ended = again("pair", folder)
    assert ended.code == 0, ended.text
    assert "nothing is left to train" in ended.text


def test_the_second_of_two_equal_commands_says_who_is_at_work(straight, tmp_path):
    script, arguments = programs.COMMANDS["pair"]
    first = farm.Program(script, [*arguments, "max_epochs=40"], tmp_path)
    args = tmp_path / "trained_models" / "mocov2plus" / "0" / "args.json"
    while not args.exists():
        time.sleep(0.02)
    second = farm.run(script, [*arguments, "max_epochs=40"], tmp_path)
    assert second.code == 2, second.text
    assert f"process {first.pid} on" in second.text
    assert first.wait().code == 0
    assert [p.name for p in args.parents[1].iterdir() if p.is_dir()] == ["0"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_says_how_to_go_on(signum, straight, tmp_path):
    script, arguments = programs.COMMANDS["pair"]
    process = farm.Program(script, arguments, tmp_path)
    while not list(tmp_path.rglob("*-ep=0.ckpt")):
        time.sleep(0.005)
    process.kill(signum)
    ended = process.wait()
    assert ended.code == 128 + signum
    assert not ended.traceback
    assert "Kept: " in ended.text
    assert "auto_resume.enabled=True" in ended.text
    assert again("pair", tmp_path).code == 0
    assert different(straight("pair"), tmp_path) == []


def test_a_folder_that_vanishes_is_named(tmp_path):
    script, arguments = programs.COMMANDS["pair"]
    process = farm.Program(script, [*arguments, "max_epochs=50"], tmp_path)
    while not list(tmp_path.rglob("*-ep=0.ckpt")):
        time.sleep(0.005)
    shutil.rmtree(tmp_path / "trained_models")
    ended = process.wait()
    assert (ended.code, ended.traceback) == (2, False), ended.text
    assert "trained_models" in ended.text.rpartition("error: ")[2]


def test_files_may_not_grow(straight, tmp_path):
    """As on a full disk: every file is refused beyond 60 kB."""

    def limits():
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    ended = farm.run(*programs.COMMANDS["pair"], tmp_path, limits=limits)
    assert (ended.code, ended.traceback) == (2, False), ended.text
    assert "cannot be written" in ended.text.rpartition("error: ")[2]
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("*.partial"))
    assert again("pair", tmp_path).code == 0
    assert different(straight("pair"), tmp_path) == []


def test_what_a_program_writes_is_json(straight):
    args = next(straight("pair").rglob("args.json"))
    assert json.loads(args.read_text())["method"] == "mocov2plus"
