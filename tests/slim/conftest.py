# SPDX-License-Identifier: MIT
"""One thread, and the extension known, as in the programs."""

import pytest
import torch

from sparse_ext.extension import register

register()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
