# SPDX-License-Identifier: MIT
"""The commands of the pages for people who come from another library run on a tiny run."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.docs.test_commands import ROOT, commands
from tests.programs.conftest import pretrained

assert pretrained  # a fixture
pytestmark = pytest.mark.slow
PAGES = sorted((ROOT / "docs").glob("from_*.md"))


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        pixels = generator.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(page, pretrained, folder, tmp_path):
    names = {"RUN": str(pretrained[0]), "FOLDER": str(folder), "SPARSE": str(tmp_path / "sparse")}
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = 0
    for words in commands(page):
        assert words[0] == "python3"
        words = ["=".join(names.get(part, part) for part in word.split("=")) for word in words[1:]]
        if words[0].startswith("main_"):
            words = [str(ROOT / words[0]), *words[1:], "--cfg", "job"]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        refused = "nothing to remove" in done.stderr  # a dense run has no empty channel
        assert done.returncode == 0 or refused, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
        ran += 1
    assert ran >= 2
