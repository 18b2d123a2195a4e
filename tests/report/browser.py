# SPDX-License-Identifier: MIT
"""Pages in a real browser: what they look like, and whether anything is too wide."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
_PROBE = """<script>
const wide = [...document.querySelectorAll("*")].filter(e => e.scrollWidth > e.clientWidth + 1
  && getComputedStyle(e).overflowX !== "visible").map(e => e.tagName + "." + e.className);
const page = document.documentElement;
document.title = `wide=${wide};page=${page.scrollWidth};height=${page.scrollHeight}`;
</script>"""


def _run(page: Path, width: int, height: int, *more: str) -> str:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={width},{height}", *more, page.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout


def layout(page: Path, width: int) -> tuple[list[str], int, int]:
    """What scrolls sideways, and width and height of the page, at that width of the window."""
    probed = page.with_name(f"probed-{page.name}")
    probed.write_text(page.read_text().replace("</body>", f"{_PROBE}</body>"))
    found = re.search(
        r"wide=([^;<]*);page=(\d+);height=(\d+)", _run(probed, width, 900, "--dump-dom")
    )
    assert found is not None, "the browser said nothing"
    return [name for name in found[1].split(",") if name], int(found[2]), int(found[3])


def screenshot(page: Path, width: int, height: int):
    """The page as a PIL image."""
    image = pytest.importorskip("PIL.Image")
    target = page.with_name(f"{page.stem}-{width}.png")
    _run(page, width, height, f"--screenshot={target}")
    return image.open(target).convert("RGB")
