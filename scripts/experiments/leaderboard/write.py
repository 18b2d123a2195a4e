# SPDX-License-Identifier: MIT
"""python -m scripts.experiments.leaderboard.write BOARD: table and figure into the documents.

Reads `benchmarks/results/BOARD_leaderboard.json`; writes between the markers of docs/results.md
and, for the boards in `FIGURES`, of README.md, and draws `docs/BOARD_leaderboard.svg`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from scripts.experiments.leaderboard.protocol import PROTOCOLS, protocol
from scripts.experiments.leaderboard.tables import Row, rows, table
from scripts.experiments.programs import ROOT
from solo.errors import DataError
from solo.files.whole import write_text
from solo.programs.app import run_program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: rows that README shows; docs/results.md has all
SHORT = (("dense", "none"), ("synccp", "element"), ("gmp", "element"), ("granet_ssl", "element"))
SHORT = (*SHORT, ("granet", "element"), ("sd", "element"), ("vicreg_dual", "gate"))


def main(argv: Sequence[str] | None = None) -> None:
    """Write it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("board", choices=PROTOCOLS)
    parser.add_argument("--root", type=Path, default=ROOT, help="where the documents are")
    args = parser.parse_args(argv)
    run_program(lambda: write(args.board, args.root))


def write(board: str, root: Path = ROOT) -> None:
    """Write table and figure of `board` into the documents below `root`.

    Raises:
        DataError: there are no figures, or a document lacks its markers.
    """
    file = root / f"benchmarks/results/{board}_leaderboard.json"
    if not file.is_file():
        raise DataError(f"{file} does not exist: run scripts/experiments/leaderboard.sh {board}")
    cells = json.loads(file.read_text("utf-8"))
    if not any(cell["purpose"] == "result" for cell in cells):
        raise DataError(f"{file} has no finished cell of the table yet.")
    about = circumstances(cells)
    text = f"{about}\n\n{table(cells)}"
    if board in FIGURES:
        name = f"{board}_leaderboard.svg"
        title, figure = FIGURES[board]
        draw(figure(cells), root / "docs" / name)
        title = f"{title} on {protocol(board).title}"
        few = [cell for cell in cells if (cell["method"], cell["granularity"]) in SHORT]
        shown = f"![{title}](docs/{name})\n\n{about}\n\n{table(few)}"
        replace(root / "README.md", board, shown)
        text = f"![{title}]({name})\n\n{text}"
    replace(root / "docs/results.md", board, text)


def circumstances(cells: Sequence[Mapping[str, Any]]) -> str:
    """A sentence: how many cells and seeds, where and when."""
    found = [cell for cell in cells if cell["purpose"] == "result"]
    seeds = sorted({cell["seed"] for cell in found})
    days = sorted({cell["date"] for cell in found})
    period = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machines = ", ".join(sorted({cell["machine"] for cell in found}))
    versions = ", ".join(sorted({cell["torch"] for cell in found}))
    return (
        f"{len(found)} runs, seeds {', '.join(map(str, seeds))}; {machines}, one thread a run, "
        f"torch {versions}, {period}. Mean ± standard deviation (number of seeds); differences are "
        "taken seed by seed."
    )


def replace(path: Path, board: str, text: str) -> None:
    """Put `text` between the markers of `board` in a document.

    Raises:
        DataError: the markers are not there, once and in order.
    """
    begin, end = (f"<!-- leaderboard:{board}:{word} -->" for word in ("begin", "end"))
    old = path.read_text("utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise DataError(f"{path} needs the lines {begin} and {end}, once and in this order.")
    before, rest = old.split(begin)
    write_text(path, f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def draw(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, with the same bytes every time."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "solo-learn-sparse"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def levels_figure(cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Linear accuracy against sparsity of single weights, a line per method with error bars.

    The error bars are one standard deviation over seeds; the band is that of the dense encoder.
    """
    from sparse_ext.report import plots

    every = rows(cells)
    lines: dict[str, list] = {}
    for row in every:
        if row.granularity == "element":
            lines.setdefault(_label(row), []).append((row.level, row.spread("linear_acc1")))
    with plots.drawing(7.2, 4.2) as (drawn, axes):
        for index, (method, points) in enumerate(lines.items()):
            points = sorted(points)
            shift = 0.15 * (index - (len(lines) - 1) / 2)  # error bars beside each other
            axes.errorbar(
                [100 * level + shift for level, _ in points],
                [found.mean for _, found in points],
                [found.sd or 0 for _, found in points],
                label=method,
                color=f"C{index % 10}",
                linestyle="--" if index >= 10 else "-",
                marker="s" if index >= 10 else "o",
                markersize=3,
                linewidth=1.3,
                capsize=2,
            )
        for row in every:
            if row.method == "dense" and (found := row.spread("linear_acc1")):
                axes.axhline(found.mean, color=plots.GREY, linewidth=1.1, label="dense")
                width = found.sd or 0
                axes.axhspan(found.mean - width, found.mean + width, color=plots.GRID)
        axes.set_xticks(sorted({100 * level for line in lines.values() for level, _ in line}))
        axes.set(xlabel="sparsity (% of the prunable weights)", ylabel="linear top-1 (%)")
        drawn.legend(loc="outside right upper")
    return drawn


def methods_figure(cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Linear accuracy of every row, the best on top, for boards of one sparsity.

    Each seed is a dot with its number; below them their mean and, as error bar, one standard
    deviation. The line is the mean of the dense encoder.
    """
    from sparse_ext.report import plots

    found = [(row, row.values("linear_acc1")) for row in rows(cells)]
    found.sort(key=lambda pair: mean(pair[1].values()))
    with plots.drawing(7.2, 0.8 + 0.45 * len(found)) as (drawn, axes):
        for place, (row, by_seed) in enumerate(found):
            dense = row.method == "dense"
            color = plots.GREY if dense else "C0"
            center, every = mean(by_seed.values()), list(by_seed.values())
            sd = stdev(every) if len(every) > 1 else 0
            axes.errorbar(center, place - 0.15, xerr=sd, color=color, marker="D", capsize=3)
            axes.plot(every, [place + 0.1] * len(every), "o", color=color, markersize=3.5)
            for seed, accuracy in by_seed.items():
                axes.text(accuracy, place + 0.2, str(seed), ha="center", fontsize=7)
            if dense:
                axes.axvline(center, color=plots.GREY, linewidth=1.1, zorder=0)
        names = [f"{_label(row)} {row.level:.0%}" if row.level else row.method for row, _ in found]
        axes.set_yticks(range(len(found)), names)
        axes.set(xlabel="linear top-1 (%); small numbers: seeds", ylim=(-0.6, len(found) - 0.4))
    return drawn


#: what is drawn of a board, and its title; the other boards have a table in docs/results.md alone
FIGURES = {
    "digits": ("Linear accuracy against sparsity", levels_figure),
    "cifar": ("Linear accuracy of dense and sparse encoders", methods_figure),
}


def _label(row: Row) -> str:
    """A method's name; of one like SDCLR, which prunes to train a dense encoder, it says so."""
    found = row.spread("measured_sparsity")
    return row.method if found is None or found.mean > 0 else f"{row.method} (dense encoder)"


if __name__ == "__main__":
    main()
