# SPDX-License-Identifier: MIT
"""Which branch a pass through a gated encoder takes, and what its gated layers did in it.

solo's training steps announce every pass (`solo.utils.views.encoding`); the method at work maps
the announced view to a branch, in one place. A pass that nobody has announced (validation, linear
evaluation, kNN, fine-tuning, `encoder(x)` in your own code) takes the branch that
`gating.eval` names. Train or eval mode never decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from solo.errors import ConfigError, did_you_mean
from solo.utils.views import View, current_view


@dataclass
class Usage:
    """What one gated layer did in one pass.

    Attributes:
        macs: multiply-accumulates per image, mean over the batch, gates included; keeps its graph.
        macs_dense: of the plain layer.
        figures: further means over the batch, e.g. `rate`, the share of open gates; 0-dim, with
            or without graph.
        masks: what was open, where a method wants to compare branches; not kept by default.
        shares: further figures as a part and its whole, per image: a layer's figure is their
            quotient, the encoder's the quotient of the sums over its layers.
    """

    macs: Tensor | int
    macs_dense: int
    figures: dict[str, Tensor] = field(default_factory=dict)
    masks: Tensor | None = None
    shares: dict[str, tuple[Tensor, int]] = field(default_factory=dict)


@dataclass
class Pass:
    """What the gates of an encoder did in one pass.

    Attributes:
        branch: the branch it took.
        images: size of the batch.
        layers: usage of each gated layer, by name.
        plain: MACs per image of each convolution outside of the gated layers, by name.
    """

    branch: str
    images: int
    layers: dict[str, Usage] = field(default_factory=dict)
    plain: dict[str, int] = field(default_factory=dict)

    @property
    def macs_dense(self) -> int:
        """MACs per image of the dense network's counted layers."""
        own = sum(usage.macs_dense for usage in self.layers.values())
        return own + sum(self.plain.values())

    @property
    def rho(self) -> Tensor:
        """MACs used over `macs_dense`; 0-dim, differentiable where the gates are."""
        used = sum(self.plain.values()) + sum(usage.macs for usage in self.layers.values())
        return torch.as_tensor(used / self.macs_dense, dtype=torch.float32)

    @property
    def rho_gated(self) -> Tensor:
        """As `rho`, of the gated layers alone; 1 where there are none (a dense encoder's pass)."""
        if not self.layers:
            return torch.ones(())
        used = sum(usage.macs for usage in self.layers.values())
        dense = sum(usage.macs_dense for usage in self.layers.values())
        return torch.as_tensor(used / dense, dtype=torch.float32)

    def figures(self) -> dict[str, Tensor]:
        """`<figure>/<layer>` of every gated layer, and `<figure>` of all their shares; 0-dim."""
        found: dict[str, Tensor] = {}
        parts: dict[str, list[tuple[Tensor, int]]] = {}
        for layer, usage in self.layers.items():
            found |= {f"{name}/{layer}": value for name, value in usage.figures.items()}
            for name, (part, whole) in usage.shares.items():
                found[f"{name}/{layer}"] = part / whole
                parts.setdefault(name, []).append((part, whole))
        for name, shares in parts.items():
            found[name] = sum(p for p, _ in shares) / sum(w for _, w in shares)  # type: ignore
        return found


class Meter:
    """Means over the images of many passes; sums stay on the device until they are asked for."""

    def __init__(self) -> None:
        self.images = 0
        self.macs_dense = 0
        self._sums: dict[str, Tensor] = {}

    def state(self) -> dict[str, Any]:
        """What `restored` makes the same meter of: numbers and tensors on the CPU."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        return {"images": self.images, "macs_dense": self.macs_dense, "sums": sums}

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> Meter:
        """The meter whose `state` this is, with its sums on `device`."""
        meter = cls()
        meter.images, meter.macs_dense = state["images"], state["macs_dense"]
        meter._sums = {name: total.to(device) for name, total in state["sums"].items()}
        return meter

    def add(self, done: Pass) -> None:
        """Count one pass through the encoder."""
        found = {"rho": done.rho, "rho_gated": done.rho_gated, **done.figures()}
        for name, value in found.items():
            total = value.detach().double() * done.images
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self.images += done.images
        self.macs_dense = done.macs_dense

    def means(self) -> dict[str, float]:
        """`flops_reduction` (1 - rho), `macs_effective`, `macs_dense`, `rho`, and all figures.

        `times_fewer_macs` is 1 / rho, `times_fewer_macs_gated` the same of the gated layers alone
        (CDG's Eq. 13). Empty if there was no pass. MACs are per image and counted, not timed.
        """
        if not self.images:
            return {}
        means = {name: float(total) / self.images for name, total in self._sums.items()}
        rho, gated = means.pop("rho"), means.pop("rho_gated")
        return {
            "flops_reduction": 1 - rho,
            "rho": rho,
            "macs_effective": rho * self.macs_dense,
            "macs_dense": float(self.macs_dense),
            "times_fewer_macs": 1 / rho,
            "times_fewer_macs_gated": 1 / gated,
            **means,
        }


class BranchContext:
    """Shared by one encoder and its gated layers; copies and pickles with them.

    Args:
        branches: names of the branches.
        evaluation: branch of a pass that nobody has announced.
        branch_of: branch of an announced view, given the epoch.

    Attributes:
        epoch: of the training run; set by the callback.
        tape: last pass of each announced view, and of unannounced passes with a graph (None).
        meter: of the unannounced passes since `collect`.
    """

    def __init__(
        self,
        branches: tuple[str, ...],
        evaluation: str,
        branch_of: Callable[[View, int], str],
    ) -> None:
        self.branches = branches
        self.evaluation = evaluation
        self.branch_of = branch_of
        self.epoch = 0
        self.tape: dict[View | None, Pass] = {}
        self.meter = Meter()
        self._open: Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not in the middle of a pass and hold no graph."""
        return {**self.__dict__, "tape": {}, "meter": Meter(), "_open": None}

    def choose(self, branch: str) -> None:
        """Take `branch` in passes that nobody has announced.

        Raises:
            ConfigError: the method has no such branch.
        """
        if branch not in self.branches:
            raise ConfigError(
                f"gating.eval={branch!r}: this encoder has no such branch. "
                f"{did_you_mean(branch, self.branches)}"
            )
        self.evaluation = branch

    @property
    def branch(self) -> str:
        """The branch of the pass under way, also of a layer that is called by itself."""
        if self._open is not None:
            return self._open.branch
        view = current_view()
        return self.evaluation if view is None else self.branch_of(view, self.epoch)

    def begin(self, encoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A pass starts (a forward pre-hook of the encoder)."""
        self._open = None  # an earlier pass may have ended in an error
        self._open = Pass(self.branch, len(inputs[0]))

    def end(self, encoder: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A pass is over (a forward hook of the encoder)."""
        done, self._open = self._open, None
        view = current_view()
        if done is None:
            return
        if view is not None or torch.is_grad_enabled():
            self.tape[view] = done
        if view is None:
            self.meter.add(done)

    def collect(self) -> dict[str, float]:
        """Means over the unannounced passes since the last call; none of them counts again."""
        meter, self.meter = self.meter, Meter()
        return meter.means()

    def record(self, layer: str, usage: Usage) -> None:
        """A gated layer says what it did; outside of an encoder's pass nobody asks."""
        if self._open is not None:
            self._open.layers[layer] = usage

    def record_plain(self, layer: str, macs: int) -> None:
        """A convolution outside of the gated layers says what it cost."""
        if self._open is not None:
            self._open.plain[layer] = macs
