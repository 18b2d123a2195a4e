#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  webdataset 1.0.2, torch 2.14.1.
# Guess:     shardshuffle with a seed gives another order in every epoch, the same in every run;
#            and detshuffle=True is what one asks for to be sure of it.
# Behaviour: with a seed alone every epoch has the order of the first. With detshuffle=True the
#            epoch is counted inside the data set, and a DataLoader with workers copies the data
#            set anew each epoch: the count never leaves zero. The order changes only without
#            workers or with persistent_workers=True.
# Seen:      8 shards, three epochs. seed: equal for 0 workers, 2 workers, 2 persistent workers.
#            seed and detshuffle: different, equal, different.
exec "$(dirname "$0")/run_with" webdataset==1.0.2 torch==2.14.1 numpy==2.4.6 <<'PYTHON'
from importlib.metadata import version

import torch
import webdataset

from expect import expect


def epochs(deterministic, workers, persistent):
    shards = webdataset.WebDataset(
        "shard-{0..7}.tar", shardshuffle=100, detshuffle=deterministic, seed=7
    ).decode()
    loader = torch.utils.data.DataLoader(
        shards, batch_size=None, num_workers=workers, persistent_workers=persistent
    )
    return [[sample["cls"] for sample in loader] for _ in range(3)]


if __name__ == "__main__":
    print(f"webdataset {version('webdataset')}, torch {torch.__version__}")
    for shard in range(8):
        with webdataset.TarWriter(f"shard-{shard}.tar") as tar:
            for i in range(5 * shard, 5 * shard + 5):
                tar.write({"__key__": f"{i:03d}", "cls": i})
    for deterministic in (False, True):
        for workers, persistent in ((0, False), (2, False), (2, True)):
            first, second, third = epochs(deterministic, workers, persistent)
            expect(
                "every epoch has all 40 samples",
                all(sorted(epoch) == list(range(40)) for epoch in (first, second, third)),
            )
            changes = deterministic and (workers == 0 or persistent)
            expect(
                f"detshuffle={deterministic}, {workers} workers, persistent {persistent}: "
                f"epochs {'equal' if first == second == third else 'different'}",
                (first != second and second != third) if changes else first == second == third,
            )
PYTHON
