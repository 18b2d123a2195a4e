# SPDX-License-Identifier: MIT
"""The notebooks of the docs: valid files without outputs, and they run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.unit
def test_there_is_one():
    assert NOTEBOOKS


@pytest.mark.unit
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_is_stored_without_outputs_and_compiles(path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        compile("".join(cell["source"]), path.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_it_runs(path, tmp_path):
    """As one program: its own assertions must hold."""
    code = "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "code")
    program = tmp_path / "notebook.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\n")
    done = subprocess.run(
        [sys.executable, str(program)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "90.0% of the prunable weights are zero" in done.stdout
