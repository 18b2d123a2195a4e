# SPDX-License-Identifier: MIT
"""What every script here writes: one JSON with the machine, the code and the command beside it.

A cell that is in the file already is not measured again, so that a script that was cut off goes on.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(ROOT), str(ROOT / "benchmarks")]  # for scripts that are started by their path


class Results:
    """Cells by name, kept on the disk after each.

    Args:
        path: of the JSON file; made with the first cell.
    """

    def __init__(self, path: Path):
        self.path = path
        self.cells: dict[str, Any] = {}
        if path.is_file():
            self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]

    def __contains__(self, name: str) -> bool:
        return name in self.cells

    def add(self, name: str, figures: dict[str, Any]) -> None:
        """Keep one cell."""
        self.cells[name] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {**circumstances(), "cells": self.cells}
        self.path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def circumstances() -> dict[str, Any]:
    """Machine, versions, commit and command."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "machine": platform.machine(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or None,
        "command": " ".join(sys.argv),
    }
