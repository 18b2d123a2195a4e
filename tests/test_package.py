# SPDX-License-Identifier: MIT
"""The wheel carries what its programs need, and nothing that needs a checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel's content, without the checkout around it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_command_runs_from_the_wheel(unpacked, tmp_path):
    commands = sorted(p for p in unpacked.rglob("__main__.py"))
    assert len(commands) >= 6
    env = {**os.environ, "PYTHONPATH": str(unpacked)}
    for path in commands:
        module = ".".join(path.parent.relative_to(unpacked).parts)
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{module}: {done.stderr}"
        assert "usage" in done.stdout.lower(), module


def test_only_library_code_is_in_it(unpacked):
    top = {path.name for path in unpacked.iterdir() if path.suffix != ".dist-info"}
    programs = {
        f"main_{name}.py" for name in ("pretrain", "linear", "knn", "umap", "tickets", "embed")
    }
    assert top == {"solo", "sparse_ext"} | programs


def test_data_files_are_in_it(unpacked):
    for folder, pattern in (
        ("solo", "*.yaml"),
        ("solo", "*.txt"),
        ("sparse_ext", "*.html"),
        ("sparse_ext", "*.cpp"),
    ):
        tracked = {
            path.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern) if path.is_file()
        }
        assert tracked
        assert all((unpacked / path).is_file() for path in tracked)


def test_recipes_and_the_zoo_are_in_it(unpacked, tmp_path):
    recipes = unpacked / "solo" / "recipes"
    for kind in ("pretrain", "linear", "finetune", "sparse", "gating"):
        wanted = {p.relative_to(ROOT) for p in (ROOT / "scripts" / kind).rglob("*.y*ml")}
        assert wanted
        assert all((recipes / path).is_file() for path in wanted)
    assert (recipes / "zoo" / "manifest.json").is_file()
    env = {**os.environ, "PYTHONPATH": str(unpacked)}
    for name in ("byol", "any"):
        command = [sys.executable, "-m", "main_pretrain", "--config-name", name, "--cfg", "job"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "method: byol" in done.stdout
        assert str(recipes) in done.stderr
    code = (
        "from solo.checkpoints.zoo import read_manifest; assert len(read_manifest()['models']) > 20"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env)
    assert done.returncode == 0
