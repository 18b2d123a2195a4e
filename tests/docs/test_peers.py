# SPDX-License-Identifier: MIT
"""docs/peers.md says of this project what its functions compute on the page's input."""

import importlib
import re

import pytest

from tests.docs.test_snippets import ROOT

PAGE = (ROOT / "docs" / "peers.md").read_text()
HEADINGS = {
    "momentum, batch norm": "The momentum network",
    "momentum, schedule": "The momentum network",
}


@pytest.fixture(scope="module")
def peers():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("peers")


@pytest.fixture(scope="module")
def figures(peers):
    return peers.ours()


def own_row(heading: str) -> list[str]:
    """The cells of the row of this project in the section of that heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (row,) = re.findall(r"^\| \*\*this project\*\*.*$", section, flags=re.M)
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_every_figure_is_in_the_row_of_this_project(peers, figures):
    assert len(figures) >= 10
    for subject, figure in figures.items():
        cells = " | ".join(own_row(HEADINGS.get(subject, subject)))
        for value in figure.values() if isinstance(figure, dict) else [figure]:
            number = re.escape(peers.number(value))
            assert re.search(rf"(?<![\d.]){number}(?![\d.])", cells), (subject, number, cells)


def test_the_papers_formulas_agree_where_the_page_says_so(peers, figures):
    """VICReg's variance and SupCon's disagreement, by formulas written down anew."""
    papers, own = peers.papers(), figures["VICReg"]
    assert float(own["variance"]) == pytest.approx(float(papers["VICReg"]["variance"]), rel=1e-5)
    assert float(papers["VICReg"]["invariance"]) == pytest.approx(4 * float(own["invariance"]))
    assert figures["SupCon"] < papers["SupCon"]  # the log of a mean is above the mean of logs
    assert float(papers["RankMe"]["32 of 1,024"]) == pytest.approx(32.05, abs=0.01)
