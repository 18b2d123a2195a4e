# SPDX-License-Identifier: MIT
"""What the leaderboard trains: cells, searches, and a launcher that goes on where it was killed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from scripts.experiments import programs
from scripts.experiments.jobs import Job
from scripts.experiments.leaderboard import __main__ as launcher
from scripts.experiments.leaderboard import overall, results
from scripts.experiments.leaderboard.cells import FIXED, MAIN, SETTINGS, Cell, cells, searches
from scripts.experiments.leaderboard.protocol import PROTOCOLS, chosen, protocol
from scripts.experiments.quickstart import plan as quickstart
from solo.errors import ConfigError, DataError

pytestmark = pytest.mark.unit
GMP = Cell("gmp", "element", 0.9, 0)


def test_cells_are_those_that_are_promised_in_an_order_that_is_balanced():
    every = list(cells("digits"))
    assert len({cell.name for cell in every}) == len(every)
    assert all(results.named("digits", cell.name) == cell for cell in every)
    reported = [cell for cell in every if cell.setting is None]
    seeds = Counter((c.method, c.granularity, c.sparsity, c.budget) for c in reported)
    assert set(seeds.values()) == {3, 5}
    main = {(method, "element", 0.9, None) for method in MAIN}
    assert {key for key, n in seeds.items() if n == 5} == {("dense", "none", 0.0, None), *main}
    rivals = ("granet_ssl", "granet", "gmp", "rigl", "rigl_itop", "random", "oneshot", "snip")
    rivals = (*rivals, "sd", "sdclr", "synccp")
    for method in rivals:
        assert all((method, "element", level, None) in seeds for level in (0.8, 0.9, 0.95))
    for granularity in ("2:4", "1:4"):
        found = {key[0] for key in seeds if key[1] == granularity}
        assert found == {"synccp", "gmp", "sr_ste", "asp"}
    names = [cell.name for cell in every]
    for cell in reported:
        for other in launcher._after(cell):
            assert names.index(other) < names.index(cell.name)


@pytest.mark.parametrize("board", PROTOCOLS)
def test_every_cell_composes_and_its_section_is_accepted(board):
    from omegaconf import OmegaConf

    from sparse_ext.config.sections import build

    plan = protocol(board)
    for cell in cells(board):
        if cell.seed not in (0, 100) or cell.gated or cell.sparsity in (0.8, 0.95):
            continue
        setting = cell.setting or next(iter(SETTINGS.get(cell.method, [None])))
        values = plan.pretraining(cell, setting)
        cfg = programs.compose(plan.pretrain, values)
        assert cfg.seed == cell.seed
        if cell.method == "dense":
            assert "sparse" not in cfg
            continue
        section = build(OmegaConf.to_container(cfg.sparse))
        assert section.name == cell.method
        assert section.granularity == cell.granularity
        assert section.final == (1 if ":" in cell.granularity else cell.sparsity)


def test_images_are_asked_for_where_they_are_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"CIFAR-10. needs --data FOLDER"):
        protocol("cifar").images(None)
    with pytest.raises(ConfigError, match=r"digits. takes no --data"):
        protocol("digits").images(tmp_path)
    with pytest.raises(DataError, match="no folder 'train' in it"):
        protocol("cifar").images(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    values, arguments = protocol("cifar").images(tmp_path)
    assert values[0] == f"data.train_path='{tmp_path / 'train'}'"
    assert arguments[2:] == ["--val_data_path", str(tmp_path / "val")]
    assert protocol("digits").images(None) == ([], [])


def test_steps_of_an_epoch_are_those_of_the_data():
    from solo.data.catalogue import info_of

    for plan in PROTOCOLS.values():
        cfg = programs.compose(plan.pretrain, plan.overrides)
        images = info_of(plan.dataset).images[0]
        assert plan.steps_per_epoch == images // cfg.optimizer.batch_size


def test_rivals_choose_among_the_same_values():
    values = {
        method: {v.partition("=")[2] for v in SETTINGS[method]["short"] if "ramp_end" in v}
        for method in ("synccp", "gmp", "granet", "granet_ssl")
    }
    assert set(map(tuple, values.values())) == {("0.75",)}
    assert searches("synccp") == []  # what was tuned by hand is not searched as well
    counts = {len(choices) for choices in SETTINGS.values()}
    assert counts == {3}


def test_the_quickstart_runs_cells_of_the_board():
    board = protocol("digits")
    cell = Cell("synccp", "element", 0.8, 5)
    values = {v for v in board.pretraining(cell, FIXED["synccp"]) if "sparse" in v}
    assert values == {*quickstart.SPARSE, "sparse.final=0.8"}  # which is SyncCP's default
    assert (board.pretrain, board.linear) == (quickstart.PRETRAIN, quickstart.LINEAR)
    assert board.overrides == ("++quality.enabled=False",)  # which measures and changes nothing


def test_the_best_setting_of_the_search_is_taken():
    found = {c.name: {"linear_acc1": v} for c, v in zip(searches("gmp"), (70, 75, 75), strict=True)}
    assert chosen(found, searches("gmp")) == "short"
    assert chosen({}, []) is None
    with pytest.raises(ConfigError, match="No search of gmp has finished"):
        chosen({}, searches("gmp"))


def test_nonsense_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"no leaderboard 'digit'.*digits"):
        protocol("digit")
    with pytest.raises(ConfigError, match=r"--only gmp-91-seed0: no cell fits.*gmp-90-seed0"):
        launcher.select("digits", ["gmp-91-seed0"])
    with pytest.raises(ConfigError, match=r"no cell 'dense-seed9'"):
        results.named("digits", "dense-seed9")
    with pytest.raises(SystemExit):
        launcher._parse(["digits", "--processes", "0"])


def test_wanted_cells_bring_those_that_they_need(tmp_path):
    jobs = launcher.plan(
        "digits", protocol("digits"), tmp_path, launcher.select("digits", ["asp-*seed1"])
    )
    assert {job.name for job in jobs} == {"dense-seed1", "asp-2of4-50-seed1", "asp-1of4-75-seed1"}
    jobs = launcher.plan("digits", protocol("digits"), tmp_path, [GMP])
    assert [job.name for job in jobs] == [*(c.name for c in searches("gmp")), "gmp-90-seed0"]


def test_a_cell_is_run_again_when_its_recipe_differs_or_its_figures_are_gone(tmp_path):
    board = protocol("digits")
    marks = [
        launcher.plan("digits", board, tmp_path, [GMP], more)[-1].fingerprint
        for more in ((), ("max_epochs=3",))
    ]
    other = launcher.plan("digits", board, tmp_path / "moved", [GMP])[-1].fingerprint
    assert marks[0] != marks[1]
    assert marks[0] == other
    (tmp_path / "done").mkdir()
    kept, gone = (tmp_path / "done" / f"{name}.json" for name in ("dense-seed0", GMP.name))
    for path in (kept, gone):
        path.write_text("{}")
    (tmp_path / "runs" / "dense-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "dense-seed0" / "cell.json").write_text("{}")
    launcher._forget_what_is_gone(tmp_path, [Cell("dense", "none", 0.0, 0), GMP])
    assert kept.exists()
    assert not gone.exists()


def test_time_left_is_the_mean_of_what_is_done():
    jobs = [Job(str(i), "", lambda: (), "") for i in range(6)]
    assert overall.seconds_left(jobs, 2) is None
    jobs[0].seconds, jobs[1].seconds, jobs[2].failure = 100.0, 200.0, "bad"
    assert overall.seconds_left(jobs, 2) == pytest.approx(3 * 150 / 2)
    jobs[3].process, jobs[3].started = object(), time.monotonic() - 50
    assert overall.seconds_left(jobs, 1) == pytest.approx(400, abs=1)
    assert overall.summary(jobs, 1) == "2 of 6 cells, 1 failed, about 0 h 07 min left"
    seen, stream = [], io.StringIO()
    show = overall.Overall(1, lambda: seen.append(1), stream)
    show(jobs)
    show(jobs)
    assert len(seen) == 1
    assert "2 of 6 cells" in stream.getvalue()


TINY = ("--set", "max_epochs=6", "++limit_train_batches=3", "++limit_val_batches=1")
TINY = (*TINY, "backbone.kwargs.width=4", "--linear", "max_epochs=1", "backbone.kwargs.width=4")
TINY = (*TINY, "check_val_every_n_epoch=1", "++limit_train_batches=2", "++limit_val_batches=1")


def start(folder, *only):
    command = (sys.executable, "-m", "scripts.experiments.leaderboard", "digits")
    command = (*command, "--output", folder, "--json", folder / "board.json", "--only", *only)
    env = {**os.environ, "PYTHONPATH": str(programs.ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        (*command, "--processes", "1", *TINY),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


@pytest.mark.slow
def test_killed_it_goes_on_and_names_what_failed(tmp_path):
    only = ("dense-seed[01]", "sd-90-seed0", "gmp-90-early-seed100")
    first = start(tmp_path, *only)
    done = tmp_path / "runs" / "dense-seed0" / "cell.json"
    deadline = time.monotonic() + 600
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    while not list(tmp_path.glob("runs/gmp*/lejepa")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    before = done.stat().st_mtime_ns
    second = start(tmp_path, *only)
    out = second.communicate(timeout=900)[0]
    assert second.returncode == 1, out  # 18 steps are too few for GMP's update period
    assert "Failed, and not in the table: gmp-90-early-seed100." in out
    assert "leaves no room for one update period" in out
    assert done.stat().st_mtime_ns == before
    board = json.loads((tmp_path / "board.json").read_text())
    found = {(c["method"], c["seed"]): c for c in board}
    assert list(found) == [("dense", 0), ("sd", 0), ("dense", 1)]
    assert found["sd", 0]["measured_sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert found["sd", 0]["macs_effective"] < found["dense", 0]["macs_effective"]
    assert found["dense", 0]["linear_acc1"] != found["dense", 1]["linear_acc1"]
