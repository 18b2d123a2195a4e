#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  stable-pretraining 0.1.8, torch 2.14.1, gloo backend.
# Guess:     its SIGReg, written for DDP (averages of the characteristic function over ranks, times
#            the global number of samples), gives on two ranks with half of a batch each what one
#            process gives for all of it.
# Behaviour: the averages are computed by torch.distributed.nn.all_reduce, which returns them, and
#            the returned tensor is not used: every rank tests its own half and multiplies the
#            result by the number of ranks. For normal samples the expected statistic does not
#            depend on the number of samples, so that it, and with it the weight of SIGReg, doubles
#            with two ranks.
# Seen:      1,024 normal samples of 16 dimensions: 1.252 in one process, 2.711 and 2.579 on the
#            ranks.
exec "$(dirname "$0")/run_with" stable-pretraining==0.1.8 torch==2.14.1 torchvision==0.29.1 \
    lightning==2.6.6 timm==1.0.31 numpy==2.4.6 <<'PYTHON'
import tempfile
from importlib.metadata import version

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stable_pretraining.methods.lejepa import SlicedEppsPulley

from expect import expect

SAMPLES = 1024


def statistic(x):
    return SlicedEppsPulley(num_slices=256)(x).item()  # directions follow from the step, 0


def data():
    return torch.randn(SAMPLES, 16, generator=torch.Generator().manual_seed(0))


def work(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    results[rank] = statistic(data().chunk(2)[rank])
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"stable-pretraining {version('stable-pretraining')}, torch {torch.__version__}")
    with mp.Manager() as manager, tempfile.TemporaryDirectory() as folder:
        results = manager.dict()
        # forked, as importing the package takes long
        mp.start_processes(work, (f"{folder}/store", results), 2, start_method="fork")
        ranks = [results[rank] for rank in range(2)]
    whole = statistic(data())
    halves = [2 * statistic(half) for half in data().chunk(2)]
    expect(
        f"one process {whole:.3f}, two ranks {ranks[0]:.3f} and {ranks[1]:.3f}",
        all(value > 1.5 * whole for value in ranks),
    )
    expect(
        f"each rank: twice its own half, {halves[0]:.3f} and {halves[1]:.3f}",
        all(abs(a - b) < 1e-3 for a, b in zip(ranks, halves, strict=True)),
    )
PYTHON
