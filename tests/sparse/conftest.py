# SPDX-License-Identifier: MIT
"""One thread: these nets are so small that waking a second one costs more than it brings."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
