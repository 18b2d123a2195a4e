#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  torch 2.14.1, gloo backend.
# Guess:     all_reduce with MAX or MIN gives NaN if any rank holds NaN, as torch.maximum does.
#            Asking for the largest loss or gradient norm of all ranks is then a test for
#            non-finite steps.
# Behaviour: only rank 0's NaN survives. A NaN of any other rank is dropped, on all ranks, without
#            a word: the comparison is asked as "is the other one larger", which NaN never is. SUM
#            keeps the NaN wherever it is.
# Seen:      MAX with NaN on rank 0: nan on both ranks; on rank 1: 1.0 on both; SUM: nan on both.
exec "$(dirname "$0")/run_with" torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import math
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from expect import expect

OPERATIONS = {"MAX": dist.ReduceOp.MAX, "MIN": dist.ReduceOp.MIN, "SUM": dist.ReduceOp.SUM}


def work(rank, store, results):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, operation in OPERATIONS.items():
        for owner in range(2):
            value = torch.tensor([math.nan if rank == owner else 1.0])
            dist.all_reduce(value, operation)
            results[name, owner, rank] = value.item()
    dist.destroy_process_group()


if __name__ == "__main__":
    print(f"torch {torch.__version__}")
    with mp.Manager() as manager, tempfile.TemporaryDirectory() as folder:
        results = manager.dict()
        mp.spawn(work, (f"{folder}/store", results), 2)
        got = dict(results)
    for name in OPERATIONS:
        for owner in range(2):
            pair = [got[name, owner, rank] for rank in range(2)]
            survives = owner == 0 or name == "SUM"
            expect(
                f"{name} with NaN on rank {owner}: {pair}",
                all(math.isnan(v) for v in pair) if survives else pair == [1.0, 1.0],
            )
PYTHON
