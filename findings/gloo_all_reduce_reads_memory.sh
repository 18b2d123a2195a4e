#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, gloo backend.
# Guess:     all_reduce adds elements of equal index, or refuses a tensor that is not contiguous
#            (NCCL refuses).
# Behaviour: it adds whatever lies in memory. A channels_last tensor on one rank and a contiguous
#            one on the other are added in different orders of their elements; a slice with gaps
#            (every second element) has its gaps reduced and half of its elements left alone. No
#            error, and the ranks can disagree afterwards. all_gather copies first and is right.
# Seen:      0..7 as (1, 2, 2, 2), channels_last on rank 1 only: rank 0 gets 0 5 3 8 6 11 9 14
#            instead of 0 2 4 ... 14; the slice 0 2 4 6 gives 0 4 4 6 on both ranks instead of 0 4
#            8 12.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from expect import expect


def work(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    image = torch.arange(8.0).view(1, 2, 2, 2)
    if rank == 1:
        image = image.contiguous(memory_format=torch.channels_last)
    gathered = [torch.empty(1, 2, 2, 2) for _ in range(2)]
    dist.all_gather(gathered, image)
    results["gathered", rank] = torch.cat(gathered).flatten().tolist()
    dist.all_reduce(image)
    results["image", rank] = image.flatten().tolist()
    sliced = torch.arange(8.0)[::2]
    dist.all_reduce(sliced)
    results["slice", rank] = sliced.tolist()
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"torch {torch.__version__}")
    with mp.Manager() as manager, tempfile.TemporaryDirectory() as folder:
        results = manager.dict()
        mp.spawn(work, (f"{folder}/store", results), 2)
        got = dict(results)
    right = [2.0 * i for i in range(8)]
    expect(f"mixed memory formats, rank 0: {got['image', 0]}", got["image", 0] != right)
    expect(f"mixed memory formats, rank 1: {got['image', 1]}", got["image", 1] != got["image", 0])
    for rank in range(2):
        expect(
            f"slice 0 2 4 6, rank {rank}: {got['slice', rank]}",
            got["slice", rank] == [0.0, 4.0, 4.0, 6.0],
        )
        expect(
            f"all_gather is right on rank {rank}",
            got["gathered", rank] == [float(i) for i in range(8)] * 2,
        )
PYTHON
