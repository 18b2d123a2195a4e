# SPDX-License-Identifier: MIT
"""One finished sweep for all tests that look at one."""

import os

import pytest

from sparse_ext.tickets.extension import register
from sparse_ext.tickets.program import tickets
from tests.tickets.tiny import config, sweep_section


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The run folder of a three-level rotnet sweep. Tests that change it copy it first."""
    register()
    folder, before = tmp_path_factory.mktemp("sweep"), os.getcwd()
    os.chdir(folder)
    try:
        run = tickets(config(sweep_section()))
        run.folder = run.folder.resolve()
        return run
    finally:
        os.chdir(before)


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty current folder, with the extensions registered."""
    register()
    monkeypatch.chdir(tmp_path)
    return tmp_path
