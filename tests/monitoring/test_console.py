# SPDX-License-Identifier: MIT
"""Lines beside bars, bars for silent waits, durations and counts in words."""

import io
import sys
import time

import pytest
from tqdm import tqdm

from solo.monitoring import console
from solo.monitoring.console import bar, command, duration, rate, say, short, waiting

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86400, "1 day 0 h"),
        (3 * 86400 + 4 * 3600 + 1, "3 days 4 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (512, "512"), (44_336, "44.3 k"), (11_173_962, "11.2 M"), (1.8217e9, "1.82 G")],
)
def test_counts(number, text):
    assert short(number) == text


def test_a_line_does_not_begin_on_the_bar(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    shown = tqdm(total=10, file=out, desc="Epoch 1")
    shown.update(5)
    shown.refresh()
    say("epoch 1 of 2: loss 3")
    shown.close()
    lines = out.getvalue().replace("\r", "\n").splitlines()
    assert "epoch 1 of 2: loss 3" in lines


def test_a_bar_waits_until_there_is_something_to_wait_for(monkeypatch, capsys):
    assert list(bar([1, 2, 3], "quick")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(console, "PATIENCE", 0.05)
    monkeypatch.setattr(console, "_TO_A_FILE", 0.0)
    slow = (time.sleep(0.05) or i for i in range(4))
    assert list(bar(slow, "decoding images", 4)) == [0, 1, 2, 3]
    shown = capsys.readouterr().err
    assert "decoding images" in shown
    assert "/4" in shown


def test_work_of_a_library_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(console, "PATIENCE", 0.05)
    monkeypatch.setattr(console, "_TO_A_FILE", 0.05)
    with waiting("UMAP of 4 images"):
        time.sleep(0.3)
    assert "UMAP of 4 images: 0 s so far" in capsys.readouterr().err
    with waiting("nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_what_goes_wrong_inside_is_not_hidden():
    with pytest.raises(ValueError, match="inside"), waiting("x"):
        raise ValueError("inside")


def test_other_programs_are_named_as_this_one_was_started(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/solo-pretrain", "--config-name", "byol"])
    assert command("knn", "python3 main_knn.py") == "solo-knn"
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py"])
    assert command("knn", "python3 main_knn.py") == "python3 main_knn.py"


def test_a_rate_has_a_decimal_where_there_are_few():
    assert [rate(1234.5), rate(10.0), rate(9.96), rate(2.44), rate(0.0)] == [
        *("1,234", "10", "10.0", "2.4", "0.0")
    ]
