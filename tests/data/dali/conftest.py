# SPDX-License-Identifier: MIT
"""A folder of marked JPEG images."""

import pytest

from tests.data.conftest import write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "train", classes=("a", "b", "c"), per_class=5, size=32)
