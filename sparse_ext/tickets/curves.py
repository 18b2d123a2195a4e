# SPDX-License-Identifier: MIT
"""Accuracy against remaining weights, from run folders: mean and standard error over seeds."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from solo.errors import DataError, did_you_mean
from solo.files.whole import whole_file
from sparse_ext.tickets.run_folder import RUN, RunFolder


class Point(NamedTuple):
    """One level of a curve: sparsity and the figure reached.

    Attributes:
        remaining: kept share of the prunable weights, mean over seeds.
        mean: of the metric over the seeds.
        error: its standard error, std / sqrt(seeds); 0 for one seed.
        seeds: how many.
    """

    remaining: float
    mean: float
    error: float
    seeds: int


@dataclass(frozen=True)
class Run:
    """A run folder as the curves see it; `points` are (density, value) by level."""

    figure: str
    curve: str
    seed: int
    points: Mapping[int, tuple[float, float]]


def read_run(folder: str | Path, metric: str) -> Run:
    """What the finished levels of a run folder say.

    Raises:
        DataError: it is no run folder, or its levels have no such metric.
    """
    run = RunFolder(folder)
    facts, points = run.facts(), {}
    for level in run.finished():
        done = level.done or {}
        if metric not in done["metrics"]:
            hint = did_you_mean(metric, done["metrics"])
            raise DataError(f"{level.folder}: no metric '{metric}'. {hint}")
        points[level.number] = (done["density"], done["metrics"][metric])
    return Run(facts["figure"], facts["curve"], facts["seed"], points)


def find_runs(roots: Sequence[str | Path], metric: str) -> list[Run]:
    """All run folders below `roots` that have a finished level.

    Raises:
        DataError: there is none.
    """
    files = sorted({path for root in roots for path in Path(root).rglob(RUN)})
    runs = [read_run(path.parent, metric) for path in files]
    runs = [run for run in runs if run.points]
    if not runs:
        where = ", ".join(str(root) for root in roots)
        raise DataError(f"{where}: no run folder with a finished level below; see main_tickets.py")
    return runs


def average(runs: Sequence[Run]) -> list[Point]:
    """The curve of runs that differ in their seed; a level counts the seeds that have it."""
    points = []
    for level in sorted({level for run in runs for level in run.points}):
        found = [run.points[level] for run in runs if level in run.points]
        values = [value for _, value in found]
        n, mean = len(values), math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1) if n > 1 else 0.0
        remaining = math.fsum(density for density, _ in found) / n
        points.append(Point(remaining, mean, math.sqrt(variance / n), n))
    return points


def figures(runs: Sequence[Run]) -> dict[str, dict[str, list[Point]]]:
    """The curves of each figure, by name, in alphabetical order.

    Raises:
        DataError: a figure has two runs of one curve with the same seed.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    for figure, curve in sorted({(run.figure, run.curve) for run in runs}):
        members = [run for run in runs if (run.figure, run.curve) == (figure, curve)]
        seeds = [run.seed for run in members]
        if len(set(seeds)) < len(seeds):
            raise DataError(
                f"Figure '{figure}' has several runs of '{curve}' with one seed (seeds {seeds}): "
                "give them different tickets.curve or retrain.curve, or fewer folders"
            )
        found.setdefault(figure, {})[curve] = average(members)
    return found


def draw(roots: Sequence[str | Path], output: str | Path, metric: str = "val_acc1") -> list[Path]:
    """Write `<figure>.svg` and `<figure>.csv` for each figure of the run folders below `roots`.

    Args:
        roots: folders that are searched.
        output: folder.
        metric: a metric of the levels; `val_acc1` is the accuracy after the last epoch.

    Returns:
        the files.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, curves in figures(find_runs(roots, metric)).items():
        for suffix, write in ((".svg", _plot), (".csv", _table)):
            path = output / f"{name}{suffix}"
            write(path, curves, metric)
            written.append(path)
    return written


def _table(path: Path, curves: Mapping[str, Sequence[Point]], metric: str) -> None:
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["curve", "remaining", metric, "standard_error", "seeds"])
        for curve, points in curves.items():
            writer.writerows([curve, *point] for point in points)


def _plot(path: Path, curves: Mapping[str, Sequence[Point]], metric: str) -> None:
    from matplotlib.ticker import NullFormatter

    from sparse_ext.report.plots import CYCLE, drawing

    label = {"val_acc1": "top-1 accuracy, last epoch (%)", "map": "mean average precision (%)"}
    with drawing(6.4, 4.0) as (figure, axes):
        for i, (curve, points) in enumerate(curves.items()):
            seeds = sorted({point.seeds for point in points})
            n = "-".join(str(s) for s in {seeds[0]: 0, seeds[-1]: 0})
            axes.errorbar(
                [point.remaining for point in points],
                [point.mean for point in points],
                yerr=[point.error for point in points],
                color=CYCLE[i % len(CYCLE)],
                linestyle="--" if curve.lower().startswith("random") else "-",
                marker="o",
                markersize=3,
                capsize=2,
                label=f"{curve} ({n} seed{'s' if n != '1' else ''})",
            )
        axes.set_xscale("log")
        axes.invert_xaxis()
        ticks = _ticks(min(point.remaining for points in curves.values() for point in points))
        axes.set_xticks(ticks, [f"{100 * tick:g}" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="remaining weights (%, log)", ylabel=label.get(metric, metric))
        figure.legend(loc="outside upper left", ncols=2)
        with whole_file(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})


def _ticks(smallest: float) -> list[float]:
    """1, 0.5, 0.2, 0.1, ... down to below `smallest`."""
    ticks = [1.0]
    while ticks[-1] > smallest:
        exponent, step = divmod(len(ticks), 3)
        ticks.append(round((1.0, 0.5, 0.2)[step] * 10.0**-exponent, 6))
    return ticks
