# SPDX-License-Identifier: MIT
"""A prune that is killed goes on where it was, and ends as one that was not."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from solo.checkpoints import load_run
from tests.docs.test_commands import ROOT

pytestmark = pytest.mark.slow
# finished layers come slowly, so that there is time to kill; each is counted on standard output
PROGRAM = """
import sys, time
from sparse_ext.prune import encoder
one = encoder._one
def slowly(plan, name, *rest):
    print("PRUNES", name, flush=True)
    time.sleep(0.2)
    return one(plan, name, *rest)
encoder._one = slowly
from sparse_ext.prune.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for i in range(16):
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


def test_a_killed_prune_goes_on(pretrained, folder, tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def start(out):
        words = [pretrained[0], "--data", folder, "--out", out, "--images", 8]
        command = [sys.executable, "-c", PROGRAM, *map(str, words)]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)

    def pruned(process):
        lines, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return [line.split()[1] for line in lines.splitlines() if line.startswith("PRUNES")]

    straight = pruned(start(tmp_path / "straight"))
    killed = start(tmp_path / "killed")
    layers = tmp_path / "killed" / ".layers"
    while len(list(layers.glob("*.safetensors"))) < 4:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    finished = {file.stem for file in layers.glob("*.safetensors")}
    again = pruned(start(tmp_path / "killed"))
    assert again == [name for name in straight if name not in finished]
    assert not layers.exists()
    first, second = (load_run(tmp_path / name)[0].state_dict() for name in ("straight", "killed"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
