# SPDX-License-Identifier: MIT
"""Damaged files, small disks and wrong input, many of each; how many were tried is printed."""

import pytest

from tests.stress import bad_input, damage, disks, fuzz_config

pytestmark = pytest.mark.slow


def test_damaged_and_changed_checkpoints():
    assert damage.main(["--bytes", "300", "--content", "40"]) == 0


def test_small_disks_and_too_little_memory():
    assert disks.main([]) == 0


def test_wrong_values():
    assert fuzz_config.main(["--tries", "100"]) == 0


def test_wrong_input():
    assert bad_input.main([]) == 0
