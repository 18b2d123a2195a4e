# SPDX-License-Identifier: MIT
"""One tiny pretraining run for all tests that prune one."""

from tests.programs.conftest import pretrained

__all__ = ["pretrained"]
