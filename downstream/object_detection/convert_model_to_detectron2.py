# SPDX-License-Identifier: MIT
"""solo-learn's place of scripts/utils/convert_model_to_detectron2.py, with the same arguments."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    script = Path(__file__).resolve().parents[2] / "scripts/utils/convert_model_to_detectron2.py"
    runpy.run_path(str(script), run_name="__main__")
