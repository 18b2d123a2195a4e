# SPDX-License-Identifier: MIT
"""Runs that several tests look at: made once per session."""

import os
import warnings

import pytest

from solo.programs.pretrain import pretrain
from tests.programs.tiny import PRETRAIN, config, run_of

warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """(run folder, checkpoint) of a tiny pretraining run."""
    folder, before = tmp_path_factory.mktemp("pretrained"), os.getcwd()
    os.chdir(folder)
    try:
        pretrain(config(PRETRAIN))
    finally:
        os.chdir(before)
    return run_of(folder)
