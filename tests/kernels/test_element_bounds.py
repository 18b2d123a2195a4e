# SPDX-License-Identifier: MIT
"""What is measured once is decided for every process, at the same time or later."""

import json
import multiprocessing
import random

import pytest
from filelock import FileLock

from sparse_ext.kernels.element import bounds as module
from sparse_ext.kernels.element import choice, native
from sparse_ext.kernels.element.bounds import Bounds

pytestmark = pytest.mark.unit


def never():
    pytest.fail("this is known")


def test_bounds_close_in_and_no_decision_is_ever_taken_back():
    """Whatever measurements say and in whatever order, a density is decided once."""
    draw = random.Random(0)
    for _ in range(50):
        found, told = Bounds(None), {}
        for _ in range(30):
            density = round(draw.random(), 2)
            wins = found.decide("a", density, lambda: draw.random() < 0.5)
            assert told.setdefault(density, wins) is wins
        assert all(found.decide("a", density, never) is wins for density, wins in told.items())
        winners = [density for density, wins in told.items() if wins]
        losers = [density for density, wins in told.items() if not wins]
        assert max(winners, default=-1) < min(losers, default=2)


def test_two_that_began_together_tell_each_other(tmp_path):
    """Either has read the file before the other wrote to it."""
    first, second = Bounds(tmp_path / "b.json"), Bounds(tmp_path / "b.json")
    assert first.decide("a", 0.3, lambda: True)
    assert not second.decide("b", 0.5, lambda: False)
    assert second.decide("a", 0.3, never)
    assert not first.decide("b", 0.6, never)
    assert second.decide("a", 0.1, never)
    assert not second.decide("a", 0.4, lambda: False)
    third = Bounds(tmp_path / "b.json")
    assert third.known == {"a": (0.3, 0.4), "b": (-1.0, 0.5)}


def decide_all(path, seed, results):
    """Cases in an order of its own, with measurements by chance."""
    found, draw = Bounds(path), random.Random(seed)
    cases = [(str(case), density / 10) for case in range(4) for density in range(1, 8)]
    draw.shuffle(cases)
    told = {f"{c} {d}": found.decide(c, d, lambda: draw.random() < 0.5) for c, d in cases}
    results.put(told)


def test_processes_at_the_same_time_decide_alike(tmp_path):
    path, context = tmp_path / "b.json", multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=decide_all, args=(path, s, results)) for s in range(4)]
    for worker in workers:
        worker.start()
    first, *others = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert others == [first] * 3
    later = Bounds(path)
    for name, wins in first.items():
        case, density = name.split()
        assert later.decide(case, float(density), never) is wins
    assert {True, False} == set(first.values())


def test_one_that_was_stopped_while_it_measured_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    found = Bounds(tmp_path / "b.json")
    with FileLock(tmp_path / "b.json.lock"):
        assert found.decide("a", 0.3, lambda: True)
        assert found._patience == 0
        assert not found.decide("a", 0.5, lambda: False)
    assert Bounds(tmp_path / "b.json").known == {"a": (0.3, 0.5)}


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '{"a": 3}', '{"a": [1]}', '{"a": ["x", 2]}', '{"a": null}', "\0"]
)
def test_rubbish_in_the_file_is_measured_again(tmp_path, content):
    path = tmp_path / "b.json"
    path.write_text(content, encoding="utf-8")
    assert Bounds(path).decide("a", 0.5, lambda: True)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [0.5, 2.0]}


def test_without_a_place_for_the_file_the_process_remembers(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    found = Bounds(tmp_path / "file" / "b.json")
    assert found.decide("a", 0.5, lambda: True)
    assert found.decide("a", 0.4, never)


@pytest.mark.skipif(not native.variant(), reason="needs AVX2")
def test_a_checkpoint_carries_decisions_to_another_cache(monkeypatch):
    """Only those of this process, and only to the same build of the kernel."""
    monkeypatch.setattr(choice, "_bounds", Bounds(None))
    choice.bounds().adopt({"of another run": (0.1, 0.2)})
    choice.bounds().decide("a", 0.3, lambda: True)
    taken = choice.decisions()
    assert list(taken.values()) == [{"a": [0.3, 2.0]}]
    monkeypatch.setattr(choice, "_bounds", Bounds(None))
    choice.repeat({"another build": {"b": [0.5, 2.0]}})
    assert choice.decisions() == {}
    choice.repeat(taken)
    assert choice.bounds().decide("a", 0.3, never)
    assert not choice.bounds().decide("b", 0.3, lambda: False)
