# SPDX-License-Identifier: MIT
"""The bash launchers: what they start, what they refuse, and two processes by torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"


def bash(*words, **env):
    return subprocess.run(
        ["bash", *map(str, words)],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
    )


@pytest.mark.unit
@pytest.mark.parametrize(
    "script", sorted(SCRIPTS.rglob("*.sh")) + sorted(SCRIPTS.rglob("*.sbatch"))
)
def test_every_script_is_valid_bash(script):
    assert bash("-n", script).returncode == 0


@pytest.mark.unit
def test_the_launcher_names_the_program_and_the_configuration():
    done = bash(
        SCRIPTS / "linear/cifar/run.sh", "linear", "optimizer.lr=1", LAUNCHER="echo started"
    )
    assert done.returncode == 0
    words = done.stdout.split()
    assert words[1] == str(ROOT / "main_linear.py")
    assert words[-1] == "optimizer.lr=1"
    folder, name = words[words.index("--config-path") + 1], words[words.index("--config-name") + 1]
    assert (Path(folder) / name).is_file()


@pytest.mark.unit
def test_an_unknown_configuration_is_refused_with_the_known_ones():
    done = bash(SCRIPTS / "pretrain/cifar/run.sh", "byoll")
    assert done.returncode == 2
    assert "no configuration 'byoll'" in done.stderr
    assert " byol " in done.stderr


@pytest.mark.unit
def test_data_is_staged_once(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/image.txt").write_text("pixels")
    archive = tmp_path / "data.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "data"], check=True)
    target = tmp_path / "local disk"
    stage = SCRIPTS / "slurm/stage_data.sh"
    assert bash(stage, archive, target).returncode == 0
    (target / "data/image.txt").write_text("changed")
    again = bash(stage, archive, target)
    assert "already" in again.stdout
    assert (target / "data/image.txt").read_text() == "changed"
    assert bash(stage, tmp_path / "missing.tar", target).returncode == 2


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_trains_one_run_with_two_processes(tmp_path):
    done = bash(
        SCRIPTS / "slurm/torchrun.sh",
        SCRIPTS / "pretrain/digits",
        "mocov3.yaml",
        *("+sparse=synccp", "sparse.update_period=1", "precision=32", "max_epochs=4"),
        *("accelerator=cpu", f"checkpoint.dir={tmp_path}", "++limit_train_batches=4"),
        NPROC="2",
        MASTER_PORT="29617",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "mocov3").iterdir()
    optimizer = json.loads((folder / "args.json").read_text())["optimizer"]
    scale = optimizer["batch_size"] * 2 / 256
    assert optimizer["lr"] == pytest.approx(optimizer["lr_as_written"] * scale)
    assert len(list(folder.glob("*.ckpt"))) == 2  # checkpoint.keep_last
