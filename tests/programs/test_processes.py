# SPDX-License-Identifier: MIT
"""Real processes: killed at any moment and started again; two of them on one machine."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.programs.tiny import PRETRAIN, config, run_of

ROOT = Path(__file__).parents[2]
HYDRA = "hydra: {output_subdir: null, run: {dir: .}}\n"
NO_LOGS = """
defaults: [_self_, override hydra/hydra_logging: disabled, override hydra/job_logging: disabled]
"""


def start(folder, *args):
    """`main_pretrain.py` on cfg.yaml in `folder`."""
    command = [sys.executable, str(ROOT / "main_pretrain.py"), "--config-path", str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(
            [*command, "--config-name", "cfg.yaml", *args],
            cwd=folder,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def folder_with(path, **options):
    path.mkdir()
    text = OmegaConf.to_yaml(config(PRETRAIN, auto_resume={"enabled": True}, **options))
    (path / "cfg.yaml").write_text(NO_LOGS + HYDRA + text)
    return path


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(tmp_path):
    options = {"max_epochs": 6, "limit_train_batches": 8}
    straight = folder_with(tmp_path / "straight", **options)
    assert start(straight).wait() == 0
    killed, moments, kills = folder_with(tmp_path / "killed", **options), random.Random(0), 0
    run = killed / "trained_models" / "mocov2plus" / "0"
    while True:
        before = {path.name for path in run.glob("*.ckpt")}
        process = start(killed)
        # wait until it has made progress of its own, then a little more
        while process.poll() is None and {p.name for p in run.glob("*.ckpt")} == before:
            time.sleep(0.01)
        time.sleep(moments.random())
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        for checkpoint in run.glob("*.ckpt"):
            torch.load(checkpoint)
    assert process.returncode == 0, (killed / "output.txt").read_text()
    assert kills >= 1
    states = [torch.load(run_of(f)[1])["state_dict"] for f in (straight, killed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    metrics = [(run_of(f)[0] / "metrics.csv").read_text() for f in (straight, killed)]
    assert metrics[0] == metrics[1]


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_share_one_run(tmp_path):
    folder = folder_with(tmp_path / "two", devices=[0, 1], strategy="ddp", sync_batchnorm=True)
    assert start(folder).wait() == 0, (folder / "output.txt").read_text()
    run, checkpoint = run_of(folder)
    assert [path.name for path in run.parent.iterdir()] == ["0"]
    assert torch.load(checkpoint)["global_step"] == 2


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_share_shards(tmp_path):
    from scripts.utils.convert_imgfolder_to_shards import convert_imgfolder_to_shards
    from tests.data.conftest import write_folder

    write_folder(tmp_path / "images", per_class=13)
    convert_imgfolder_to_shards(tmp_path / "images", tmp_path / "shards", shard_size=3)
    data = {"dataset": "custom", "train_path": str(tmp_path / "shards"), "format": "webdataset"}
    folder = folder_with(
        tmp_path / "two",
        data={**data, "num_workers": 1},
        devices=[0, 1],
        strategy="ddp",
        max_epochs=2,
        limit_train_batches=1.0,
        optimizer__batch_size=4,
    )
    assert start(folder).wait() == 0, (folder / "output.txt").read_text()
    _, checkpoint = run_of(folder)
    assert torch.load(checkpoint)["global_step"] == 2 * (26 // 2 // 4)
