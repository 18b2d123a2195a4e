# SPDX-License-Identifier: MIT
"""Every command of docs/evaluation.md, docs/knn.md and docs/umap.md runs, in that order.

Only their length is cut (one epoch, two batches); a page's commands use what an earlier page made.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_snippets import ROOT, snippets

pytestmark = pytest.mark.slow
SHORT = ["max_epochs=1", "++limit_train_batches=2", "++limit_val_batches=2"]
PAGES = ("evaluation.md", "knn.md", "umap.md")


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(snippets(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def runnable(words: list[str]) -> list[str]:
    python, program, *rest = words
    assert python == "python3", words
    short = SHORT if program in ("main_pretrain.py", "main_linear.py") else []
    return [sys.executable, str(ROOT / program), *rest, *short]


def test_commands_of_the_evaluation_pages(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = 0
    for page in PAGES:
        for words in commands(ROOT / "docs" / page):
            done = subprocess.run(
                runnable(words), cwd=tmp_path, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{page}: {shlex.join(words)}\n{done.stderr[-2000:]}"
            ran += 1
    assert ran == 5


def test_the_command_of_the_sparse_page_composes():
    (words,) = commands(ROOT / "docs/sparse.md")
    done = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:], "--cfg", "job"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "final: 0.9" in done.stdout
