# SPDX-License-Identifier: MIT
"""What ranks share, between two gloo processes."""

import torch
from torch import distributed as dist

from tests.training.processes import launch


def gathered(rank):
    """Rank 0 holds its rows in channels_last, rank 1 contiguous, as after loading from a file."""
    from solo.utils.ranks import concat_all_gather_no_grad, gather, share

    dist.init_process_group("gloo", rank=rank, world_size=2)
    rows = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5) + 1000 * rank
    mine = rows.contiguous(memory_format=torch.channels_last) if rank == 0 else rows
    graded = mine.clone().requires_grad_()
    everyone = gather(graded)
    (everyone * torch.arange(everyone.numel()).view_as(everyone)).sum().backward()
    shared = mine.clone()
    share([shared])
    plain = concat_all_gather_no_grad(mine)
    return [x.detach().tolist() for x in (plain, everyone, shared, graded.grad)]


def test_what_is_shared_does_not_depend_on_memory_formats():
    rows = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
    both = torch.cat([rows, rows + 1000])
    weights = 2 * torch.arange(both.numel(), dtype=torch.float32).view_as(both)
    for rank, (plain, graded, shared, gradient) in enumerate(launch(gathered)):
        assert plain == graded == both.tolist()
        assert shared == rows.tolist()
        assert gradient == weights[2 * rank : 2 * rank + 2].tolist()
