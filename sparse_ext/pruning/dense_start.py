# SPDX-License-Identifier: MIT
from __future__ import annotations

import torch
from lightning.pytorch import LightningModule

from solo.errors import CheckpointError
from solo.utils.encoders import encoders_of
from sparse_ext.pruning.log import log


def load_dense(module: LightningModule, path: str | None, method: str) -> None:
    """Start from the weights of a dense run: encoders, and heads as far as the file has them.

    Raises:
        CheckpointError: if the file cannot be read, or is no dense run of these encoders.
    """
    if path is None:
        log.warning(
            "%s prunes the weights as they are. To start from a trained network, give "
            "sparse.dense_checkpoint.",
            method,
        )
        return
    from solo.checkpoints.loading import check_finite, read_checkpoint

    own, state = module.state_dict(), read_checkpoint(path)["state_dict"]
    prefixes = tuple(f"{name}." for name in encoders_of(module))
    encoders = {k for k in own if k.startswith(prefixes)}
    needed = {k for k in encoders if not k.endswith((".mask", ".shadow", ".score"))}
    missing = sorted(k for k in needed if k not in state or state[k].shape != own[k].shape)
    sparse = [k for k in state if k.endswith(".mask")]
    if missing or sparse:
        what = f"it has masks ({sparse[0]})" if sparse else f"{missing[:3]} are missing or differ"
        raise CheckpointError(
            f"sparse.dense_checkpoint={path} does not fit: {what}. It must be the checkpoint of a "
            f"dense run with the same backbone and method."
        )
    found = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    check_finite(found, f"sparse.dense_checkpoint={path}")
    with torch.no_grad():
        for key, value in found.items():
            own[key].copy_(value)
    log.info("%s: %d of %d tensors from %s.", method, len(found), len(own), path)
