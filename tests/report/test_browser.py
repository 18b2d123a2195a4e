# SPDX-License-Identifier: MIT
"""Reports in a real browser at two widths: nothing is cut off, and they look as they did.

After a change that is meant to be seen: `UPDATE_SCREENS=1 pytest -m slow` on this file, and look at
the pictures in `tests/report/screens`.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from solo.files.results import add_evaluations, keep_results
from sparse_ext.report import write_report
from tests.report.browser import BROWSER, layout, screenshot
from tests.report.test_report import sparse_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no chromium here")]
SCREENS = Path(__file__).parent / "screens"
TOP = 1500  # pixels of a page that are compared
SMALL = 8  # a picture is stored so many times smaller


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a made-up run, the same on every machine."""
    folder = sparse_run(tmp_path_factory.mktemp("page") / "run")
    keep_results(folder, {"seconds": 200.0, "images_per_second": 1234.0})
    add_evaluations(folder, "knn", [{"encoder": "online", "k": 20, "acc1": 61.2}], ["acc1"])
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(json.dumps(args | {"name": "made-up run"}))
    return write_report(folder)


@pytest.mark.parametrize("width", [1400, 800, 520])
def test_nothing_is_wider_than_the_window(page, width):
    scrolling, wide, height = layout(page, width)
    assert scrolling == []
    assert wide <= width
    assert height > 1000


@pytest.mark.parametrize("width", [1400, 800])
def test_the_page_looks_as_it_did(page, width):
    seen = screenshot(page, width, TOP)
    assert seen.size == (width, TOP)
    small = seen.resize((width // SMALL, TOP // SMALL), Image.Resampling.BOX)
    stored = SCREENS / f"run-{width}.png"
    if os.environ.get("UPDATE_SCREENS"):
        SCREENS.mkdir(exist_ok=True)
        small.save(stored)
    with Image.open(stored) as image:
        before = np.asarray(image.convert("RGB"), dtype=float)
    difference = np.abs(np.asarray(small, dtype=float) - before)
    assert difference.mean() < 3, "look at it, then run with UPDATE_SCREENS=1"
    # cards and figures stand where they stood
    blocks = difference.mean(2)[: before.shape[0] // 12 * 12, : before.shape[1] // 12 * 12]
    blocks = blocks.reshape(before.shape[0] // 12, 12, -1, 12).mean((1, 3))
    assert blocks.max() < 60
