# SPDX-License-Identifier: MIT
"""What the progress bar says about speed."""

import pytest

from solo.monitoring.progress import Throughput, ThroughputBar

pytestmark = pytest.mark.unit


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def steps(meter, clock, n, wait, work, images=64):
    for _ in range(n):
        clock.now += wait
        meter.batch_is_here()
        clock.now += work
        meter.step_is_done(images)


def test_rate_and_share_of_the_last_window():
    clock = Clock()
    meter = Throughput(clock)
    steps(meter, clock, 3, wait=0.1, work=0.2)
    assert meter.images_per_second is None  # less than a second so far
    steps(meter, clock, 1, wait=0.1, work=0.2)
    assert meter.images_per_second == pytest.approx(64 / 0.3)
    assert meter.data_wait == pytest.approx(1 / 3)
    steps(meter, clock, 1, wait=0.0, work=2.0)
    assert meter.images_per_second == pytest.approx(32)
    assert meter.data_wait == 0


def test_time_between_epochs_does_not_count():
    clock = Clock()
    meter = Throughput(clock)
    steps(meter, clock, 2, wait=0.1, work=0.2)
    clock.now += 100  # validation
    meter.wait()
    steps(meter, clock, 2, wait=0.1, work=0.2)
    assert meter.images_per_second == pytest.approx(64 / 0.3)
    assert meter.data_wait == pytest.approx(1 / 3)


def test_an_error_begins_on_a_line_of_its_own(capsys):
    bar = ThroughputBar()
    bar.on_exception(None, None, ValueError())
    assert capsys.readouterr().out == "\n"
    bar.disable()
    bar.on_exception(None, None, ValueError())
    assert capsys.readouterr().out == ""


def test_a_file_has_no_bars_of_validation(capsys):
    bar = ThroughputBar()
    for part in (bar.init_sanity_tqdm(), bar.init_validation_tqdm()):
        part.reset(10)
        part.set_description("Validation")
        part.update(5)
        part.close()
    assert capsys.readouterr() == ("", "")
