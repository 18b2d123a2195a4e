# SPDX-License-Identifier: MIT
"""Messages are seen whatever Hydra has done to the loggers."""

import logging
import logging.config
from contextlib import contextmanager

import pytest

from sparse_ext.config.sections import build
from sparse_ext.pruning.log import in_words, listen, log
from sparse_ext.schedules import Clock
from tests.pruning.toys import pruner_of

pytestmark = pytest.mark.unit

# hydra/job_logging/disabled.yaml, as in solo-learn's recipes
DISABLED = {"version": 1, "root": {"level": "ERROR"}, "disable_existing_loggers": True}


@contextmanager
def disabled():
    """Loggers as they are in a program under that configuration."""
    root = logging.getLogger()
    handlers, level, known = root.handlers[:], root.level, logging.root.manager.loggerDict
    states = {name: one.disabled for name, one in known.items() if isinstance(one, logging.Logger)}
    logging.config.dictConfig(DISABLED)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, state in states.items():
            known[name].disabled = state


def test_hydra_does_not_silence_a_warning(capsys):
    with disabled():
        assert log.disabled
        pruner_of(build("gmp"), clock=Clock(steps=1, epochs=1, steps_per_epoch=1))
    assert "will not be reached" in capsys.readouterr().err


def test_information_is_seen_once(capsys):
    with disabled():
        for _ in range(2):
            listen()
        log.info("Sparsity %d.", 3)
        log.debug("Not for users.")
    assert capsys.readouterr().err == "[sparse_ext] Sparsity 3.\n"


def test_a_handler_of_the_program_gets_it_instead(capsys, caplog, monkeypatch):
    for name, value in (("handlers", []), ("propagate", True), ("disabled", False)):
        monkeypatch.setattr(log, name, value)  # whatever earlier programs in this process left
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)
    listen()
    log.info("Said once.")
    assert caplog.messages == ["Said once."]
    assert capsys.readouterr().err == ""


def test_a_chosen_level_stays():
    before = log.level
    log.setLevel(logging.ERROR)
    listen()
    assert log.level == logging.ERROR
    log.setLevel(before)


def test_sparsities_are_named():
    assert in_words([0.2999954111600588, 0.0]) == "online 30.0%, momentum 0.0%"
    assert in_words([0.8]) == "online 80.0%"
