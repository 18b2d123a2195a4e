# SPDX-License-Identifier: MIT
"""What a run leaves behind in its process: signal handlers as they were, and no network."""

import gc
import signal

import pytest

from solo.methods.base_method import BaseMethod
from solo.monitoring.interruptions import SIGNALS
from solo.programs.pretrain import pretrain
from tests.programs.tiny import PRETRAIN, config

pytestmark = pytest.mark.unit


def handlers():
    return {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS}


def networks():
    gc.collect()
    return sum(issubclass(type(found), BaseMethod) for found in gc.get_objects())


@pytest.fixture
def own_handler():
    """SIGTERM is somebody's."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


def run(tmp_path, **values):
    values = {"limit_train_batches": 1, "limit_val_batches": 0} | values
    pretrain(config(PRETRAIN, checkpoint={"enabled": False, "dir": str(tmp_path)}, **values))


def test_signals_are_those_of_before_and_the_network_is_freed(tmp_path, own_handler):
    before, alive = handlers(), networks()
    run(tmp_path)
    assert handlers() == before
    assert networks() == alive


def test_the_same_after_an_error(tmp_path, own_handler, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("broken step")

    from solo.methods.mocov2plus import MoCoV2Plus

    monkeypatch.setattr(MoCoV2Plus, "training_step", broken)
    before = handlers()
    with pytest.raises(ZeroDivisionError, match="broken step"):
        run(tmp_path)
    assert handlers() == before
