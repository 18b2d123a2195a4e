# SPDX-License-Identifier: MIT
"""The commands of the docs.

Those of docs/evaluation.md, docs/knn.md and docs/umap.md run, in that order; only their length is
cut (one epoch, two batches), and a page's commands use what an earlier page made. Those of other
pages, which need data or runs of the reader's own, compose, or name what exists.
"""

import os
import re
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
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


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


def every_command():
    """(page, words) of every command line of the README and of all pages."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for words in commands(page):
            yield page.name, [word for word in words if word != "..."]


def run(*words: str, modules: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (ROOT, modules))))}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
    return done.stdout


def write_modules(folder: Path) -> Path:
    """The files that pages ask their readers to write: `<!-- NAME.py -->` above the code."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        pattern = r"<!-- (\w+\.py) -->\n```python\n(.*?)^```"
        for name, code in re.findall(pattern, page.read_text("utf-8"), re.M | re.S):
            (folder / name).write_text(code)
    return folder


def test_every_training_command_composes(tmp_path):
    composed, modules = {}, write_modules(tmp_path)
    for page, words in every_command():
        if "--config-path" in words and words[1].startswith("main_"):
            composed[page, shlex.join(words)] = run(*words[1:], "--cfg", "job", modules=modules)
    assert len(composed) > 12
    sparse = [text for (page, line), text in composed.items() if "sparse.final=0.9" in line]
    assert sparse
    assert all("final: 0.9" in text for text in sparse)


def test_every_module_and_launcher_is_there():
    modules = set()
    for page, words in every_command():
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), f"{page}: {shlex.join(words)}"
        elif words[1:2] == ["-m"]:
            module, *rest = words[2:]
            command = rest[:1] if module in ("sparse_ext.export", "sparse_ext.tickets") else []
            modules.add((module, *command))
    assert len(modules) > 8
    for module, *command in sorted(modules):
        assert "usage" in run("-m", module, *command, "--help")
