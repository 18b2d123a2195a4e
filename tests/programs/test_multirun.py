# SPDX-License-Identifier: MIT
"""`--multirun`: names of jobs, one that fails, the page at the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from solo.files.results import read_results
from solo.programs.multirun import job_name, swept_keys

ROOT = Path(__file__).parents[2]


@pytest.mark.unit
def test_a_job_is_named_by_what_it_varies():
    argv = ["++max_epochs=2", "optimizer.lr=0.1,0.2", "+sparse=gmp,synccp", "seed=range(3)", "-m"]
    assert swept_keys(argv) == ["optimizer.lr", "sparse", "seed"]
    overrides = ["++max_epochs=2", "optimizer.lr=0.1", "+sparse=gmp", "seed=2"]
    assert job_name(overrides, swept_keys(argv)) == "lr=0.1,sparse=gmp,seed=2"
    assert job_name(["data.train_path='/a/b c'"], ["data.train_path"]) == "train_path=a-b-c"
    assert job_name(overrides, []) == ""


@pytest.mark.slow
def test_three_jobs_of_which_one_fails(tmp_path):
    command = [
        sys.executable,
        ROOT / "main_pretrain.py",
        "--config-path",
        "scripts/pretrain/digits",
    ]
    command += ["--config-name", "mocov3.yaml", "max_epochs=1", "++backbone.kwargs.width=2"]
    command += ["++limit_train_batches=2", "++limit_val_batches=1", "++quality.enabled=False"]
    command += ["+sparse=gmp", "sparse.final=0.5,1.7,0.8", "--multirun"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2, done.stderr
    assert "2 of 3 jobs are done." in done.stdout
    assert "failed: mocov3-digits-final=1.7" in done.stdout
    runs = sorted((tmp_path / "trained_models" / "mocov3").glob("[0-9]*"))
    names = [read_results(folder)["run"]["name"] for folder in runs]
    assert names == ["mocov3-digits-final=0.5", "mocov3-digits-final=0.8"]
    page = tmp_path / "trained_models" / "mocov3" / "comparison.html"
    assert str(page) in done.stdout
    assert all(name in page.read_text().replace("<wbr>", "") for name in names)
