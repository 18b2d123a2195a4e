# SPDX-License-Identifier: MIT
"""The quickstart: its scheduler by itself, and (slow) the whole of it at a tiny size."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from scripts.experiments import programs
from scripts.experiments.jobs import Job, JobError, Runner
from scripts.experiments.progress import Display
from scripts.experiments.quickstart import plan

ROOT = plan.ROOT


def job(name, code, after=(), fingerprint="1", progress=lambda line: None):
    command = (sys.executable, "-c", code)
    return Job(name, f"job {name}", lambda: command, fingerprint, after, progress)


def runner(folder, slots=2, show=lambda jobs: None):
    return Runner(folder, slots, {"OMP_NUM_THREADS": "1"}, show)


@pytest.mark.unit
def test_jobs_wait_for_what_they_need_and_share_the_slots(tmp_path):
    trace = tmp_path / "trace"
    note = f"open({str(trace)!r}, 'a').write({{!r}})"
    most = []
    jobs = [
        job("c", note.format("c"), after=("a", "b")),
        job("a", "import time; time.sleep(0.3); " + note.format("a")),
        job("b", "import time; time.sleep(0.3); " + note.format("b")),
        job("d", note.format("d"), after=("c",)),
    ]
    show = lambda jobs: most.append(sum(j.process is not None for j in jobs))  # noqa: E731
    runner(tmp_path, 2, show).run(jobs)
    assert sorted(trace.read_text()[:2]) == ["a", "b"]
    assert trace.read_text()[2:] == "cd"
    assert max(most) == 2
    assert all(j.done and not j.reused and j.fraction == 1 for j in jobs)


@pytest.mark.unit
def test_what_is_done_is_not_done_again_unless_it_would_differ(tmp_path):
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'a').write('x')"
    runner(tmp_path).run([job("a", code)])
    again = job("a", code)
    runner(tmp_path).run([again])
    assert again.reused
    assert trace.read_text() == "x"
    runner(tmp_path).run([job("a", code, fingerprint="2")])
    assert trace.read_text() == "xx"
    (tmp_path / "done" / "a.json").write_text("{damaged")
    runner(tmp_path).run([job("a", code, fingerprint="2")])
    assert trace.read_text() == "xxx"


@pytest.mark.unit
def test_a_failed_job_says_its_last_words_and_leaves_nothing_running(tmp_path):
    slow = job("slow", "import time; time.sleep(60)")
    bad = job("bad", "import sys; print('something'); print('error: no such key'); sys.exit(2)")
    start = time.monotonic()
    with pytest.raises(JobError, match=r"(?s)job bad failed \(exit code 2\).*error: no such key"):
        runner(tmp_path).run([slow, bad])
    assert time.monotonic() - start < 30
    assert slow.process.poll() is not None
    assert not (tmp_path / "done" / "bad.json").exists()
    assert "something" in (tmp_path / "logs" / "bad.log").read_text()


@pytest.mark.unit
def test_after_a_failure_what_does_not_need_it_can_go_on(tmp_path):
    bar = "print('Epoch 0: 3/4 1.2it/s', end=''); "
    bad = job("bad", bar + "print('error: the loss is nan'); import sys; sys.exit(2)")
    jobs = [bad, job("needs", "", after=("bad",)), job("a", ""), job("b", "", after=("a",))]
    stream = io.StringIO()
    with pytest.raises(JobError, match=r"(?s)job bad failed.*\nerror: the loss is nan$"):
        runner(tmp_path, 1, Display(stream)).run(jobs, keep_going=True)
    assert [j.done for j in jobs] == [False, False, True, True]
    assert re.search("✗ job bad +failed", stream.getvalue())


@pytest.mark.unit
def test_progress_is_read_from_carriage_returns(tmp_path):
    seen = []
    code = "import sys\nfor i in range(3): print(f'Epoch 0: {40*i:3d}%|', end='\\r', flush=True)"
    one = job("p", code + "; __import__('time').sleep(0.2)", progress=programs.epochs(2))
    runner(tmp_path, 1, lambda jobs: seen.append(jobs[0].fraction)).run([one])
    assert max(f for f in seen if f < 1) == pytest.approx(0.4)
    read = programs.epochs(20)
    assert read("Epoch 3:  50%|#####     | 5/10 [00:01<00:01]") == pytest.approx(3.5 / 20)
    assert read("Epoch 4 of 20:  50%|#####     | 5/10") == pytest.approx(3.5 / 20)
    assert read("epoch  4 of 20: nce loss 3.1, 200 images/s, 5 s left") == pytest.approx(4 / 20)
    assert read("Validation DataLoader 0:  50%|") is None


@pytest.mark.unit
def test_display_draws_bars_on_a_terminal_and_lines_elsewhere(monkeypatch):
    running = job("a", "")
    running.process, running.fraction, running.started = object(), 0.5, time.monotonic() - 60
    finished = job("b", "")
    finished.seconds, finished.reused = 3.0, True
    stream = io.StringIO()
    show = Display(stream)
    show([running, finished])
    show([running, finished])
    text = stream.getvalue()
    assert text.count("job b") == 1
    assert "done earlier" in text
    assert text.count(" 50%") == 1
    monkeypatch.setenv("COLUMNS", "200")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    show = Display(terminal)
    show([running, finished])
    show._redraw = 0
    show([running, finished])
    assert "\x1b[1A" in terminal.getvalue()
    assert "about 1:00 left" in terminal.getvalue()


@pytest.mark.unit
def test_plan_uses_the_programs_and_recipes_that_anyone_would(tmp_path):
    jobs = {j.name: j for j in plan.jobs(plan.Settings(tmp_path))}
    sparse = [str(part) for part in jobs["pretrain-sparse"].command()]
    dense = [str(part) for part in jobs["pretrain-dense"].command()]
    assert sparse[1].endswith("main_pretrain.py")
    assert [p for p in sparse if p not in dense] == [
        *plan.SPARSE,
        f"checkpoint.dir='{tmp_path / 'sparse'}'",
    ]
    assert jobs["linear-sparse"].after == ("pretrain-sparse",)
    assert jobs["knn-random"].after == ("baselines",)
    other = {j.name: j for j in plan.jobs(plan.Settings(tmp_path, pretrain=("max_epochs=3",)))}
    assert all(other[n].fingerprint != jobs[n].fingerprint for n in ("pretrain-dense", "knn-dense"))
    assert other["pretrain-dense"].progress("Epoch 1: 50%|") == 0.5
    assert jobs["linear-sparse"].fingerprint != jobs["linear-dense"].fingerprint


@pytest.mark.unit
def test_bf16_only_where_the_processor_has_it(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: x\nflags\t\t: fpu avx2 avx512_bf16 avx512_vnni\n")
    assert programs.precision(file) == ("precision=bf16-mixed",)
    file.write_text("model name\t: avx512_bf16\nflags\t\t: fpu avx2 avx512f\n")
    assert programs.precision(file) == programs.precision(tmp_path / "absent") == ()


@pytest.mark.unit
def test_recipes_compose_and_ask_for_what_the_quickstart_promises(tmp_path):
    from omegaconf import OmegaConf

    from scripts.experiments.programs import compose
    from sparse_ext.config.sections import build

    cfg = compose(plan.PRETRAIN, plan.SPARSE)
    sparse = build(OmegaConf.to_container(cfg.sparse))
    assert (sparse.initial, sparse.final, sparse.ramp_end) == (0.3, 0.8, 0.75)
    assert cfg.method == "lejepa"
    linear = compose(plan.LINEAR, [])
    assert linear.backbone == cfg.backbone
    assert linear.data.dataset == cfg.data.dataset == "digits"


# as many steps as SyncCP's settings need
TINY = ("--pretrain", "max_epochs=6", "optimizer.batch_size=8", "++limit_train_batches=20")
TINY = (*TINY, "++limit_val_batches=1")
TINY = (
    *TINY,
    "--linear",
    "max_epochs=2",
    "check_val_every_n_epoch=1",
    "++limit_train_batches=2",
    "++limit_val_batches=1",
)


def quickstart(folder, *more):
    command = (
        sys.executable,
        "-m",
        "scripts.experiments.quickstart",
        "--output",
        folder,
        *TINY,
        *more,
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )


@pytest.mark.slow
def test_quickstart_from_start_to_report_and_again(tmp_path):
    first = quickstart(tmp_path)
    out = first.communicate(timeout=1500)[0]
    assert first.returncode == 0, out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sparse.sparsity_online"] == pytest.approx(0.8, abs=1e-4)
    assert summary["dense.sparsity_online"] == 0
    assert summary["sparse.macs_effective"] < summary["sparse.macs_dense"]
    assert summary["dense.macs_effective"] == summary["dense.macs_dense"]
    assert summary["sparse.encoder_bytes"] < 0.4 * summary["dense.encoder_bytes"]
    for name in ("raw", "random", "dense", "sparse"):
        for key in ("linear_acc1", "knn_acc1"):
            assert 0 <= summary[f"{name}.{key}"] <= 100
    assert 0 < summary["sparse.training_cost_A"] < 1
    html = (tmp_path / "report.html").read_text()
    for text in ("Inconsistency and the start of the ramp", "Density per layer", "random encoder"):
        assert text in html
    again = quickstart(tmp_path)
    out = again.communicate(timeout=300)[0]
    assert again.returncode == 0, out
    assert out.count("done earlier, not run again") == 9


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_leaves_no_process(tmp_path):
    first = quickstart(tmp_path, "--pretrain", "max_epochs=40", "++limit_train_batches=3")
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("sparse/*/*/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    second = quickstart(tmp_path)
    assert "is at work in" in second.communicate(timeout=120)[0]
    assert second.returncode == 2
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode != 0
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not left
    assert not (tmp_path / "done" / "pretrain-sparse.json").exists()
    assert not (tmp_path / "summary.json").exists()
