# SPDX-License-Identifier: MIT
"""Seconds and megabytes, measured the same way for all that is compared."""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def keep_memory() -> None:
    """Have glibc keep what is freed.

    Otherwise it gives large tensors back to the system after one call and asks for them again in
    the next, which costs as much as a convolution and hits whoever comes first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 1 << 30)


def fastest(
    works: Sequence[Callable[[], object]],
    rounds: int,
    between: Sequence[Callable[[], object]] = (),
) -> list[float]:
    """Seconds of each in its best round; one after the other in every round, a first one uncounted.

    What stands in `between` runs after every round and times itself.

    Other programs on the machine only ever make a round slower. With one thread these are seconds
    of the CPU, which leave out those in which others had it; with several, of the wall clock.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = [float("inf")] * len(works)
    for turn in range(rounds + 1):
        for i, work in enumerate(works):
            start = clock()
            work()
            if turn:
                best[i] = min(best[i], clock() - start)
        for other in between:
            other()
    return best


def peak_memory(
    warm_up: Callable[[], object], prepare: Callable[..., Callable[[], object]], *args: Any
) -> float:
    """MB that a fresh process takes at most while `prepare(*args)()` runs twice.

    Above what it takes after `warm_up`, which should load all libraries with a trifle: weights,
    gradients, optimizer state, activations and workspaces count, the interpreter and its libraries
    do not. Linux only.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(queue, warm_up, prepare, args))
    process.start()
    found = queue.get()
    process.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def _measure(
    queue: Any,
    warm_up: Callable[[], object],
    prepare: Callable[..., Callable[[], object]],
    args: tuple,
) -> None:
    try:
        warm_up()
        empty = _status("VmRSS")
        work = prepare(*args)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        for _ in range(2):
            work()
        queue.put(_status("VmHWM") - empty)
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")
        raise


def _status(field: str) -> float:
    """A field of this process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}.")
