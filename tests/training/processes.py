# SPDX-License-Identifier: MIT
"""Two gloo processes on this machine."""

import os
import socket
import traceback

import torch
from torch import multiprocessing as mp


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(work, *args):
    """Run `work(rank, *args)` in two processes; what each returns, in rank order."""
    context = mp.get_context("spawn")
    queue, port = context.SimpleQueue(), free_port()
    jobs = [
        context.Process(target=_enter, args=(work, rank, port, queue, args)) for rank in range(2)
    ]
    for job in jobs:
        job.start()
    results = dict(queue.get() for _ in jobs)
    for job in jobs:
        job.join()
    for result in results.values():
        if isinstance(result, str) and result.startswith("Traceback"):
            raise AssertionError(result)
    return results[0], results[1]


def _enter(work, rank, port, queue, args):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), NODE_RANK="0")
    try:
        queue.put((rank, work(rank, *args)))
    except Exception:
        queue.put((rank, traceback.format_exc()))
