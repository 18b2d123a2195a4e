# SPDX-License-Identifier: MIT
"""Milliseconds of encoders on this machine, measured while the page is written."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from solo.errors import SoloError

if TYPE_CHECKING:
    from torch import nn

BATCH, ROUNDS = 16, 7


def milliseconds(encoders: Mapping[str, tuple[nn.Module, int]]) -> dict[str, float]:
    """Milliseconds per image of a forward pass in eval mode, one thread, the best of some rounds.

    Encoders with masks go by `faster()` (`sparse_ext.kernels.element`) where its kernel can be
    built, which leaves out pruned weights where that pays; all others as they are.

    Args:
        encoders: by name, the encoder and the side of its images.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = dict.fromkeys(encoders, float("inf"))
    try:
        works = {name: _work(encoder, size) for name, (encoder, size) in encoders.items()}
        for turn in range(ROUNDS + 1):
            for name, work in works.items():
                start = time.process_time()  # other programs on the machine do not count
                work()
                if turn:
                    best[name] = min(best[name], time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * seconds / BATCH for name, seconds in best.items()}


def processor() -> str:
    """Name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _work(encoder: nn.Module, size: int) -> Callable[[], None]:
    import torch

    net = encoder.eval()
    fast = getattr(encoder, "faster", None)
    if fast is not None:
        try:
            net = fast()
        except SoloError:  # masks of whole blocks, or no compiler
            net = encoder.eval()
    images = torch.zeros(BATCH, 3, size, size)

    def work() -> None:
        with torch.no_grad():
            net(images)

    return work
