# SPDX-License-Identifier: MIT
"""What a checkpoint holds of a sparse run beside its buffers, and which runs may go on with it.

Section 0.9 of the algorithms specification. A run goes on with the method, the layers, the
granularity and the sparsities it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from solo.errors import CheckpointError
from sparse_ext.masks import packing
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.granularity import parse
from sparse_ext.masks.living_weights import LatentEncoder
from sparse_ext.pruning.pruner import Pruner, Slimmed
from sparse_ext.schedules import Ramp

VERSION = 3


def take(pruner: Pruner) -> dict[str, Any]:
    """Everything that an exact resume needs: tensors and plain data."""
    ramp = pruner.ramp
    return {
        "version": VERSION,
        "method": pruner.config.name,
        "goal": goal(pruner),
        "steps": pruner.clock.steps,
        "t": pruner.t,
        "epoch": pruner.epoch,
        "period": pruner.period,
        "ramp": None if ramp is None else [ramp.t0, ramp.period, ramp.n],
        "seed": pruner.seed,
        "begins": pruner.begins,
        "aims": pruner.aims,
        "layers": pruner.online.sizes,
        "kept": pruner.kept,
        "flips": pruner.flips,
        "extra": pruner.extra_state(),
    }


def restore(pruner: Pruner, state: Mapping[str, Any]) -> None:
    """Go on where `take` was called; masks must be in place already.

    Raises:
        CheckpointError: if the state is that of another method, another encoder or another goal,
            or the masks in place are not those it was taken with.
    """
    _check(pruner, state)
    pruner.t, pruner.period, pruner.seed = state["t"], state["period"], state["seed"]
    pruner.begins, pruner.epoch = list(state["begins"]), state["epoch"]
    pruner.ramp = None if state["ramp"] is None else Ramp(*state["ramp"])
    pruner.aims = list(state["aims"])
    pruner.flips = state["flips"]
    pruner.load_extra_state(state["extra"])


def pack_optimizer(
    checkpoint: dict[str, Any], optimizer: Optimizer, encoder: Encoder, planes: bool = False
) -> None:
    """Keep of the optimizer's state only what belongs to kept weights, in place.

    Args:
        checkpoint: what is about to be saved; its sparse state remembers what was packed.
        optimizer: of the run.
        encoder: the online one; living weights have a state everywhere, and nothing is packed.
        planes: see `sparse_ext.masks.packing`.
    """
    if isinstance(encoder, LatentEncoder):
        return
    named = {id(layer.weight): name for name, layer in encoder.layers.items()}
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    whose = {index: named[id(p)] for index, p in enumerate(parameters) if id(p) in named}
    masks = {index: encoder.masks[name] for index, name in whose.items()}
    packed = packing.pack_states_(checkpoint["optimizer_states"][0]["state"], masks, planes)
    checkpoint["sparse_state"]["packed"] = {i: [whose[i], *names] for i, names in packed.items()}


def unpack_optimizer(checkpoint: dict[str, Any], encoder: Encoder) -> None:
    """Inverse of `pack_optimizer`, when the encoder has its masks back."""
    found = checkpoint["sparse_state"]["packed"]
    masks = {index: encoder.masks[name] for index, (name, *_) in found.items()}
    names = {index: rest for index, (_, *rest) in found.items()}
    packing.unpack_states_(checkpoint["optimizer_states"][0]["state"], masks, names)


def slimmed(state: Mapping[str, Any] | None) -> Slimmed | None:
    """Since when, in a pruner's state, its masks are final; None where they are not."""
    extra = {} if state is None else state["extra"]
    return Slimmed(extra["before"], extra["slimmed_at"]) if "slimmed_at" in extra else None


def goal(pruner: Pruner) -> dict[str, Any]:
    """The settings that masks in a checkpoint depend on."""
    config = pruner.config
    settings = {
        "granularity": str(parse(config.spelling)),
        "initial": config.initial,
        "final": config.final,
    }
    if pruner.momentum is not None:
        settings |= zip(("momentum_initial", "momentum_final"), config.momentum, strict=True)
    settings |= {"coupled": True} if config.coupled else {}
    settings |= {"budget": config.budget} if config.budget else {}
    return settings


def _check_length(pruner: Pruner, state: Mapping[str, Any]) -> None:
    """A run may become longer once its sparsity no longer changes."""
    steps, ramp = state.get("steps", pruner.clock.steps), state["ramp"]
    over = ramp is not None and state["t"] >= Ramp(*ramp).end
    if steps == pruner.clock.steps or over or list(state["begins"]) == list(state["aims"]):
        return
    raise CheckpointError(
        f"The checkpoint is of a run of {steps} optimizer steps, and this run has "
        f"{pruner.clock.steps}: its sparsity has not reached its final value yet, and would get "
        f"there at another step. Finish the run with max_epochs as it was, and extend it then."
    )


def _check(pruner: Pruner, state: Mapping[str, Any]) -> None:
    name = pruner.config.name
    if state["version"] != VERSION or state["method"] != name:
        raise CheckpointError(
            f"The checkpoint was trained with sparse.name={state['method']} (state version "
            f"{state['version']}), this run has {name} ({VERSION})."
        )
    if dict(state["layers"]) != pruner.online.sizes:
        odd = set(state["layers"].items()) ^ set(pruner.online.sizes.items())
        raise CheckpointError(
            f"The checkpoint's prunable layers are not those of this run; they differ in "
            f"{sorted({layer for layer, _ in odd})[:4]}. Keep backbone, sparse.granularity, "
            f"sparse.stem_dense and sparse.exclude as they were."
        )
    mine, theirs = goal(pruner), state["goal"]
    changed = [key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key)]
    if changed:
        before = ", ".join(f"sparse.{key}={theirs.get(key)}" for key in changed)
        now = ", ".join(f"sparse.{key}={mine.get(key)}" for key in changed)
        raise CheckpointError(
            f"The checkpoint was trained with {before}, this run has {now}. A run goes on with "
            f"the settings it began with: set them back. To prune its encoder further, start a "
            f"new run from its weights."
        )
    _check_length(pruner, state)
    if list(state["kept"]) != pruner.kept:
        raise CheckpointError(
            f"The checkpoint says that {list(state['kept'])} weights are kept, its masks keep "
            f"{pruner.kept}: it has lost its masks or was edited."
        )
