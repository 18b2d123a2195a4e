# SPDX-License-Identifier: MIT
"""A dense encoder becomes sparse ones: layer by layer, in bounded memory, going on after a stop."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solo.checkpoints.files import read_checkpoint, write_tensors
from sparse_ext.compat import BatchNorm
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.masks.masking import patch_named
from sparse_ext.prune.layer_inputs import execution_order, moments, portions
from sparse_ext.prune.layers import Pruned, by_score, by_sparsegpt, by_wanda
from sparse_ext.prune.plan import METHODS, Goal, Plan

Layers = dict[str, Pruned]
Progress = Callable[[str], None]


class Store:
    """Finished layers on disk, so that an interrupted run goes on where it was.

    Args:
        folder: where their files go.
        plan: layers of another plan are not taken for those of this one.
        encoder: nor those of another encoder.
        batches: nor those that have seen other calibration images.
    """

    def __init__(
        self, folder: Path, plan: Plan, encoder: nn.Module, batches: Iterable[Tensor]
    ) -> None:
        digest = hashlib.sha256(json.dumps(asdict(plan.settings), sort_keys=True).encode())
        named = ((f"images {i}", batch) for i, batch in enumerate(batches))
        for name, tensor in chain(encoder.state_dict().items(), named):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy())
        self.folder = folder / ".layers"
        self.key = digest.hexdigest()

    def read(self, name: str, goals: Iterable[Goal]) -> list[Pruned] | None:
        """The finished layer for each goal, None if it is not finished."""
        path = self._path(name)
        if not path.is_file():
            return None
        content = read_checkpoint(path)
        if content["metadata"].get("key") != self.key:
            return None
        state = content["state_dict"]
        errors = json.loads(content["metadata"]["errors"])
        return [
            Pruned(state[f"weight{i}"], state[f"mask{i}"].bool(), errors[i])
            for i, _ in enumerate(goals)
        ]

    def write(self, name: str, found: list[Pruned]) -> None:
        """Write a finished layer to disk, with its output error for each goal."""
        state = {f"weight{i}": layer.weight.contiguous() for i, layer in enumerate(found)}
        state |= {f"mask{i}": layer.mask.contiguous() for i, layer in enumerate(found)}
        errors = json.dumps([layer.error for layer in found])
        write_tensors(self._path(name), state, {"key": self.key, "errors": errors})

    def clear(self) -> None:
        """Remove the files; the result has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def prune_layers(
    encoder: nn.Module,
    plan: Plan,
    batches: list[Tensor],
    store: Store | None = None,
    progress: Progress = lambda name: None,
) -> list[Layers]:
    """Every prunable layer for every goal; the encoder itself stays dense.

    Second moments are those of the dense encoder, so they are shared by all goals. They are taken
    for as many layers at a time as fit `portions`' limit.

    Args:
        encoder: dense, in evaluation mode.
        plan: of `make_plan` on it.
        batches: calibration images (N, 3, H, W), normalised.
        store: where finished layers are kept; None = nowhere.
        progress: called with the name of each layer that is done.

    Returns:
        for each goal the pruned layers by name.
    """
    results: list[Layers] = [{} for _ in plan.goals]

    def done(name: str, found: list[Pruned]) -> None:
        for result, layer in zip(results, found, strict=True):
            result[name] = layer
        progress(name)

    open_ = []
    for name in _ordered(encoder, plan, batches):
        known = store.read(name, plan.goals) if store else None
        if known is None:
            open_.append(name)
        else:
            done(name, known)
    images = sum(len(batch) for batch in batches)
    layers = {name: plan.layers[name] for name in open_}
    needs_inputs = METHODS[plan.settings.method]
    for portion in portions(layers) if needs_inputs else [[name] for name in layers]:
        part = {name: layers[name] for name in portion}
        seen = moments(encoder, part, batches, images, plan.settings.seed) if needs_inputs else {}
        for name in portion:
            found = [_one(plan, name, goal, seen.get(name)) for goal in plan.goals]
            if store:
                store.write(name, found)
            done(name, found)
            seen.pop(name, None)
    return results


def _ordered(encoder: nn.Module, plan: Plan, batches: list[Tensor]) -> list[str]:
    if not METHODS[plan.settings.method]:
        return list(plan.layers)
    used = execution_order(encoder, plan.layers, batches[0][:1])
    return used + [name for name in plan.layers if name not in used]


def _one(plan: Plan, name: str, goal: Goal, seen: Any) -> Pruned:
    layer, kept = plan.layers[name], goal.kept[name]
    if seen is None or not seen.count:  # no inputs wanted, or the encoder never uses the layer
        score = plan.scores.get(name, layer.weight.detach().float().abs())
        return by_score(layer, plan.granularity, score, kept)
    how = by_wanda if plan.settings.method == "wanda" else by_sparsegpt
    return how(layer, plan.granularity, seen, kept)


def sparse_copy(encoder: nn.Module, layers: Layers) -> nn.Module:
    """A copy of a dense encoder with masks, and with the weights of pruned layers."""
    net = patch_named(copy.deepcopy(encoder), list(layers))
    with torch.no_grad():
        for name, layer in masked_layers(net).items():
            layer.weight.copy_(layers[name].weight)
            layer.mask.copy_(layers[name].mask)
            layer.apply_mask()
    return net


@torch.no_grad()
def estimate_batch_norms(encoder: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of all batch norms by those over `batches`, in place.

    Args:
        encoder: images (N, 3, H, W) to features; its mode is left as it was.
        batches: normalised images; each batch counts equally.

    Returns:
        number of batch norms.
    """
    norms = [m for m in encoder.modules() if isinstance(m, BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in encoder.modules()}
    momenta = [norm.momentum for norm in norms]
    encoder.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    try:
        for batch in batches:
            encoder(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return len(norms)
