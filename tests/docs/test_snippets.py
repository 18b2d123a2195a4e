# SPDX-License-Identifier: MIT
"""Every Python snippet of the documentation runs, page by page, in the order it is read."""

import re
from pathlib import Path

import pytest

import solo.data.catalogue
import solo.methods  # noqa: F401  (their registries are there before a page adds to them)
from tests.registries import registries_restored

ROOT = Path(__file__).parents[2]
ALL = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in ALL if "```python" in page.read_text()]


def snippets(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_snippets_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with registries_restored():
        exec(compile("\n".join(snippets(page, "python")), str(page), "exec"), {})


def test_links_between_pages_lead_somewhere():
    for page in ALL:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", prose):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
