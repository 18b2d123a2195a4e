# SPDX-License-Identifier: MIT
"""One call for a GPU: parts in their share of the time, and nothing left running."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import all as gpu_all  # the script, not the built-in

    yield gpu_all
    for name in ("all", "results"):
        sys.modules.pop(name, None)


def script(folder, name, text):
    (folder / name).write_text(text)
    return name


def parts(gpu, monkeypatch, folder, **scripts):
    monkeypatch.setattr(gpu, "HERE", folder)
    found = [
        gpu.Part(name, share, (script(folder, f"{name}.py", text),))
        for name, (share, text) in scripts.items()
    ]
    monkeypatch.setattr(gpu, "PARTS", tuple(found))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]


def test_a_part_whose_time_is_up_is_gone_with_its_children_and_the_next_one_begins(
    gpu, monkeypatch, tmp_path
):
    child = tmp_path / "child"
    slow = (
        "import subprocess, sys, time, pathlib\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid))\n"
        "print('half a result', flush=True)\ntime.sleep(100)\n"
    )
    quick = "import sys; print('argv', sys.argv[1:])"
    parts(gpu, monkeypatch, tmp_path, slow=(0.4, slow), quick=(1.0, quick))
    began = time.monotonic()
    assert gpu.main(["--minutes", "0.2", "--out", str(tmp_path / "out")]) == 0
    assert time.monotonic() - began < 30
    assert not alive(int(child.read_text()))
    cells = json.loads((tmp_path / "out/gpu_all.json").read_text())["cells"]
    assert cells["slow"]["ended"] == "time is up: goes on when called again"
    assert cells["slow"]["last_lines"] == ["half a result"]
    assert cells["slow"]["seconds"] == pytest.approx(0.4 * 12, abs=4)
    assert cells["quick"]["ended"] == "done"
    assert f"--out', '{tmp_path / 'out' / 'gpu_quick.json'}'" in cells["quick"]["last_lines"][0]


def test_a_failure_is_named_and_what_needs_photographs_is_left_out(
    gpu, monkeypatch, tmp_path, capsys
):
    parts(gpu, monkeypatch, tmp_path, bad=(0.5, "raise SystemExit('no such kernel')"))
    needy = gpu.Part("needy", 0.5, ("bad.py",), needs_data=True)
    monkeypatch.setattr(gpu, "PARTS", (*gpu.PARTS, needy))
    assert gpu.main(["--minutes", "1", "--out", str(tmp_path)]) == 1
    cells = json.loads((tmp_path / "gpu_all.json").read_text())["cells"]
    assert cells["needy"]["ended"] == "left out: it needs --data"
    assert cells["bad"]["ended"] == "failed (exit code 1)"
    assert "no such kernel" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "0"])


def test_an_archive_is_unpacked_once(gpu, tmp_path):
    for part in ("train", "val"):
        (tmp_path / "cifar10" / part / "cat").mkdir(parents=True)
    with tarfile.open(tmp_path / "cifar.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "cifar10", "cifar10")
    found = gpu.images(tmp_path / "cifar.tar.xz", tmp_path / "data")
    assert found == tmp_path / "data" / "cifar10"
    (found / "mark").touch()
    assert (gpu.images(tmp_path / "cifar.tar.xz", tmp_path / "data") / "mark").exists()
    assert gpu.images(tmp_path, tmp_path / "data") == tmp_path


@pytest.mark.slow
def test_every_part_is_a_script_that_says_what_it_takes(gpu):
    paths = os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent)])
    scripts = {part.command[0] for part in gpu.PARTS}
    processes = {
        name: subprocess.Popen(
            [sys.executable, FOLDER / name, "--help"],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in scripts
    }
    for name, process in processes.items():
        text = process.communicate(timeout=300)[0]
        assert process.returncode == 0, name
        assert "--tiny" in text, name
        assert "--out" in text, name
