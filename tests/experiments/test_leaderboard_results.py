# SPDX-License-Identifier: MIT
"""What the leaderboard writes: statistics against scipy, tables, the figure, and repeated cells."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from scripts.experiments.leaderboard import __main__ as launcher
from scripts.experiments.leaderboard import again, results, run, tables, write
from scripts.experiments.leaderboard.cells import Cell
from scripts.experiments.leaderboard.protocol import protocol
from scripts.experiments.leaderboard.statistics import paired, spread
from solo.errors import DataError

pytestmark = pytest.mark.unit
GMP = Cell("gmp", "element", 0.9, 0)


def record(method, seed, linear, granularity="element", sparsity=0.9, **more):
    return {
        **results.identity(Cell(method, granularity, sparsity, seed)),
        **{"linear_acc1": linear, "knn_acc1": linear - 5, "measured_sparsity": sparsity},
        **{"macs_effective": 2_500_000, "bytes": 400_000, "seconds": 60.0, "setting": None},
        **{"machine": "m", "torch": "2.14", "date": "2026-11-28", "training_cost_A": 0.5},
        **more,
    }


BOARD = [
    record("dense", 0, 80.0, "none", 0.0),
    record("dense", 1, 84.0, "none", 0.0),
    record("dense", 2, 82.0, "none", 0.0),
    record("gmp", 0, 79.0, setting="short"),
    record("gmp", 1, 80.0, setting="short"),
    record("gmp", 2, 81.0, setting="short"),
    record("snip", 1, 70.0),
    {**record("gmp", 100, 99.0), "purpose": "search"},
]


def test_interval_of_paired_differences_is_scipys():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 9):
        a, b = rng.normal(80, 3, n), rng.normal(78, 3, n)
        found = paired(dict(enumerate(a)), dict(enumerate(b)))
        interval = stats.ttest_rel(a, b).confidence_interval(0.95)
        assert found.n == n
        assert found.mean == pytest.approx((a - b).mean())
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert spread(a).sd == pytest.approx(np.std(a, ddof=1))


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    draws = rng.normal(1.5, 2.0, (4000, 3))
    zero = dict.fromkeys(range(3), 0.0)
    found = [paired(dict(enumerate(row)), zero, 0.8) for row in draws]
    share = np.mean([one.low <= 1.5 <= one.high for one in found])
    assert share == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / 4000))


def test_only_seeds_of_both_are_compared_and_one_pair_has_no_interval():
    assert paired({0: 5.0, 1: 1.0}, {1: 4.0, 2: 9.0}) == (paired({1: 1.0}, {1: 4.0}))
    one = paired({1: 1.0}, {1: 4.0})
    assert (one.n, one.mean, one.low, one.high) == (1, -3.0, None, None)
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert spread([3.0]).sd is None


def test_results_are_a_list_in_the_order_of_the_cells(tmp_path):
    for cell in ("gmp-90-seed1", "dense-seed0", "gmp-90-short-seed100"):
        folder = tmp_path / "runs" / cell
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(
            json.dumps(results.identity(results.named("digits", cell)))
        )
    (tmp_path / "runs" / "gmp-90-seed2").mkdir()  # unfinished
    results.write("digits", tmp_path, tmp_path / "board.json")
    found = json.loads((tmp_path / "board.json").read_text())
    assert [(c["method"], c["seed"], c["purpose"]) for c in found] == [
        ("dense", 0, "result"),
        ("gmp", 100, "search"),
        ("gmp", 1, "result"),
    ]


def published(path, *names, seconds=1.0):
    """A list as the launcher writes it, of cells that were trained as the board says."""
    records = []
    for cell in (results.named("digits", name) for name in names):
        setting = cell.setting or ("short" if cell.method == "gmp" else None)
        values = [*protocol("digits").pretraining(cell, setting), "precision=32"]
        record = {**results.identity(cell), "setting": setting, "overrides": values}
        records.append({**record, "seconds": seconds})
    path.write_text(json.dumps(records))
    return records


def test_cells_of_a_published_list_are_taken_over_once(tmp_path):
    names = ("dense-seed0", "gmp-90-early-seed100", "gmp-90-seed1")
    records = published(tmp_path / "list.json", *names)
    for _ in range(2):  # the second start finds what the first has taken
        assert results.take("digits", tmp_path / "list.json", tmp_path) == set(names)
    assert results.read(tmp_path) == dict(zip(names, records, strict=True))
    published(tmp_path / "list.json", *names, seconds=2.0)
    assert results.take("digits", tmp_path / "list.json", tmp_path) == set()
    assert results.read(tmp_path)["dense-seed0"]["seconds"] == 1.0  # its own figures stay


def test_cells_trained_in_another_way_are_not_taken_over(tmp_path):
    published(tmp_path / "list.json", "dense-seed0", "gmp-90-seed1")
    found = json.loads((tmp_path / "list.json").read_text())
    found[1]["overrides"].remove("sparse.kernel=dense")
    (tmp_path / "list.json").write_text(json.dumps(found))
    assert results.take("digits", tmp_path / "list.json", tmp_path) == {"dense-seed0"}
    assert set(results.read(tmp_path)) == {"dense-seed0"}


def test_cells_of_another_recipe_are_not_taken_over(tmp_path):
    published(tmp_path / "list.json", "dense-seed0", "dense-seed1")
    found = json.loads((tmp_path / "list.json").read_text())
    found[0]["recipe"] = protocol("digits").fingerprint(results.named("digits", "dense-seed0"))
    found[1]["recipe"] = "of an earlier length"
    (tmp_path / "list.json").write_text(json.dumps(found))
    assert results.take("digits", tmp_path / "list.json", tmp_path) == {"dense-seed0"}


@pytest.mark.parametrize("text", ["{", "[1]", '[{"method": "dense"}]', '{"a": 1}'])
def test_what_is_no_list_of_cells_is_refused(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=r"list\.json is no list of finished cells.*Give a file"):
        results.take("digits", tmp_path / "list.json", tmp_path)
    with pytest.raises(DataError, match=r"none\.json is no list of finished cells"):
        results.take("digits", tmp_path / "none.json", tmp_path)


def test_jobs_do_not_wait_for_cells_that_were_taken_over(tmp_path):
    gmp = results.named("digits", "gmp-90-seed1")
    jobs = launcher.plan("digits", protocol("digits"), tmp_path, [gmp])
    left = launcher._without(jobs, {"gmp-90-short-seed100", "gmp-90-default-seed100"})
    assert [job.name for job in left] == ["gmp-90-early-seed100", "gmp-90-seed1"]
    assert left[-1].after == ("gmp-90-early-seed100",)


def test_table_says_mean_spread_and_difference():
    lines = tables.table(BOARD).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| dense | – | 0% | 82.0 ± 2.0 (3) | – |")
    # differences -1, -4, -1: mean -2, sd sqrt(3), half-width 4.3027 * sqrt(3) / sqrt(3)
    assert "| `gmp` | element | 90% | 80.0 ± 1.0 (3) | -2.0 [-6.3, +2.3] |" in lines[3]
    assert lines[3].endswith("| 75.0 ± 1.0 (3) | -2.0 | 2.50 | 400 | 0.50 | 60 | short |")
    assert "| `snip` | element | 90% | 70.0 (1) | -14.0 [–] |" in lines[4]
    assert "99.0" not in "".join(lines)


def test_table_says_what_is_there_and_what_came_before():
    cells = [
        record("synccp", 0, 50.0, "filter", 0.8, measured_sparsity=0.97),
        record("asp", 0, 80.0, "2:4", 0.5),
        record("vicreg_dual", 0, 70.0, "gate", None, budget=0.3, measured_sparsity=0.0),
    ]
    lines = tables.table(cells).splitlines()[2:]
    assert lines[0].startswith("| `asp` | 2:4 | 50% | ")
    assert "| 1 + 0.50 | 60 |" in lines[0]
    assert lines[1].startswith("| `synccp` | filter | 80% (measured 97%) | ")
    assert lines[2].startswith("| `vicreg_dual` | gates | budget 30% | ")


def test_a_training_of_two_networks_has_two_rows():
    branch = {"dense_branch_linear_acc1": 81.0, "dense_branch_knn_acc1": 77.0}
    gates = {"budget": 0.3, "macs_dense": 9_000_000}
    dual = record("vicreg_dual", 0, 70.0, "gate", None, **gates, **branch)
    lines = tables.table([BOARD[0], dual]).splitlines()[3:]
    assert [line.split(" | ")[3:7] for line in lines] == [
        ["81.0 (1)", "+1.0 [–]", "77.0 (1)", "+2.0"],
        ["70.0 (1)", "-10.0 [–]", "65.0 (1)", "-10.0"],
    ]
    assert lines[0].startswith("| `vicreg_dual`, dense branch | gates | budget 30% |")
    assert [line.split(" | ")[7] for line in lines] == ["9.00", "2.50"]


@pytest.mark.parametrize("branch", [None, "dense"])
def test_both_evaluations_are_told_the_branch(tmp_path, monkeypatch, branch):
    asked = {}

    def linear(cfg):
        asked["linear"] = cfg.get("gating", {}).get("eval")
        metrics = {"val_acc1": 60.0, "encoder/macs_effective": 3.0}
        return SimpleNamespace(callback_metrics=metrics)

    def knn(args):
        asked["knn"] = args.gating_eval
        return [{"acc1": 50.0}]

    monkeypatch.setattr("solo.programs.linear.linear", linear)
    monkeypatch.setattr("solo.programs.knn.knn", knn)
    found = run.evaluate(
        protocol("digits"), tmp_path / "a.ckpt", tmp_path, "online", [], [], branch
    )
    assert asked == {"linear": branch, "knn": branch}
    assert found == {"linear_acc1": 60.0, "knn_acc1": 50.0, "macs_effective": 3.0}


@pytest.mark.parametrize(("board", "known"), [("digits", True), ("cifar", False)])
def test_the_time_of_a_resumed_cell_is_unknown(tmp_path, monkeypatch, board, known):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    left = tmp_path / "runs" / GMP.name / "lejepa" / "0" / "a.ckpt"
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr(run, "_pretrain", lambda *args: (left, ("a=1", *args[-1])))
    monkeypatch.setattr(run, "evaluate", lambda *args: {"linear_acc1": 60.0, "knn_acc1": 50.0})
    monkeypatch.setattr(run, "_measured", lambda *args: {})
    data = tmp_path if board == "cifar" else None
    found = run.run_cell(protocol(board), GMP, tmp_path, ("b=2",), data=data, setting="short")
    assert (found["seconds"] is not None, found["wall_seconds"] is not None) == (known, known)
    assert left.exists() is not known  # begun again, or gone on with
    assert found["overrides"] == ["a=1", "b=2"]  # and not the folder of the images
    assert found["recipe"] == protocol(board).fingerprint(GMP)


def test_documents_are_written_between_their_markers(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    with pytest.raises(DataError, match=r"does not exist: run scripts/experiments/leaderboard.sh"):
        write.write("digits", tmp_path)
    (tmp_path / "benchmarks/results/digits_leaderboard.json").write_text(json.dumps(BOARD[-1:]))
    with pytest.raises(DataError, match="no finished cell of the table yet"):
        write.write("digits", tmp_path)
    (tmp_path / "benchmarks/results/digits_leaderboard.json").write_text(json.dumps(BOARD))
    marks = "<!-- leaderboard:digits:begin -->\nold\n<!-- leaderboard:digits:end -->"
    (tmp_path / "README.md").write_text(f"before\n{marks}\nafter\n")
    (tmp_path / "docs/results.md").write_text("no markers")
    with pytest.raises(DataError, match=r"results\.md needs the lines"):
        write.write("digits", tmp_path)
    (tmp_path / "docs/results.md").write_text(marks)
    write.write("digits", tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!--")
    assert readme.endswith("-->\nafter\n")
    assert "old" not in readme
    assert "snip" not in readme
    assert "7 runs, seeds 0, 1, 2; m, one thread a run, torch 2.14, 2026-11-28" in readme
    assert "snip" in (tmp_path / "docs/results.md").read_text()
    first = (tmp_path / "docs/digits_leaderboard.svg").read_bytes()
    write.write("digits", tmp_path)
    assert (tmp_path / "docs/digits_leaderboard.svg").read_bytes() == first


def test_figure_shows_means_and_spread():
    drawn = write.levels_figure(BOARD)
    axes = drawn.axes[0]
    bars = {c.get_label(): c for c in axes.containers}
    assert set(bars) == {"gmp", "snip"}
    line, _, (ends,) = bars["gmp"]
    assert line.get_ydata().tolist() == [80.0]
    low, high = ends.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((79.0, 81.0))


def test_figure_of_one_sparsity_has_every_seed_and_the_best_method_on_top():
    axes = write.methods_figure(BOARD).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["snip 90%", "gmp 90%", "dense"]
    dots = {int(line.get_ydata()[0]): line for line in axes.lines if line.get_marker() == "o"}
    assert dots[1].get_xdata().tolist() == [79.0, 80.0, 81.0]
    assert [text.get_text() for text in axes.texts] == ["1", "0", "1", "2", "0", "1", "2"]
    centers = {round(bar[0].get_ydata()[0]): bar for bar in axes.containers}
    assert centers[2][0].get_xdata().tolist() == [82.0]
    (ends,) = centers[2][2]
    assert ends.get_segments()[0][:, 0] == pytest.approx([80.0, 84.0])


def test_a_repetition_names_what_differs(tmp_path, monkeypatch):
    first = record("gmp", 0, 80.0, setting="short", overrides=["++seed=0", "precision=32"])
    asked = {}

    def run_cell(plan, cell, folder, more, data, setting):
        asked.update(cell=cell, more=more, setting=setting)
        again_folder = folder / "runs" / cell.name
        again_folder.mkdir(parents=True, exist_ok=True)
        (again_folder / "encoder.safetensors").write_bytes(b"a")
        return {**first, "knn_acc1": 75.1}

    monkeypatch.setattr(again, "run_cell", run_cell)
    own = tmp_path / "runs" / "gmp-90-seed0"
    own.mkdir(parents=True)
    (own / "encoder.safetensors").write_bytes(b"b")
    found = list(again.repeat("digits", tmp_path, "gmp-90-seed0", first))
    assert found == [
        "gmp-90-seed0: knn_acc1 was 75.0 and is 75.1",
        "gmp-90-seed0: the encoders differ",
    ]
    assert asked == {"cell": GMP, "more": ["precision=32"], "setting": "short"}
    (own / "encoder.safetensors").write_bytes(b"a")
    first["knn_acc1"] = 75.1
    assert list(again.repeat("digits", tmp_path, "gmp-90-seed0", first)) == []
    done = {"asp-2of4-50-seed0": record("asp", 0, 1.0), "gmp-90-seed0": first}
    assert again.choose(done, 1) == ["gmp-90-seed0"]
    with pytest.raises(DataError, match="Only 1 cells have finished"):
        again.choose(done, 2)
