# SPDX-License-Identifier: MIT
"""The pruner: scorer x allocation x schedule. A method is a subclass that overrides little.

Everything is counted in optimizer steps. Masks are functions of synchronised state only (averaged
gradients, weights, step, seed), so every rank computes the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from solo.errors import CheckpointError, ConfigError
from sparse_ext import allocation
from sparse_ext.config import SparseConfig
from sparse_ext.encoder import Encoder
from sparse_ext.messages import listen, log
from sparse_ext.schedules import Ramp, cubic

STATE_VERSION = 2
CIFAR_PERIOD = 1000  # optimizer steps, in the paper's runs of 195 steps an epoch, 1000 epochs
CIFAR_UPDATES = 195  # that many updates fit into those runs
SHORT_RAMP = 5

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class Clock:
    """Length of a run.

    Attributes:
        steps: optimizer steps in all.
        epochs: epochs in all (the last one may be cut short).
        steps_per_epoch: optimizer steps of a full epoch.
    """

    steps: int
    epochs: int
    steps_per_epoch: int


class Pruner:
    """What all pruning methods share; on its own it keeps the encoders dense.

    Override `plan`, `initial_masks`, `online_masks`, `momentum_masks`, `end_epoch`.

    Args:
        config: the method's configuration.
        online: the encoder that is trained.
        momentum: its EMA teacher, or None.
        clock: length of the run.
        seed: of random masks; equal on all ranks.

    Attributes:
        scores_gradients: whether the running mean of |gradient| is kept for the online encoder.
        needs_data: whether the initial masks depend on a batch; `look` then comes before `start`.
        stores_zeros: whether pruned weights are stored as zero; False for methods with one latent
            weight under several masks (see `sparse_ext.functional`).
        t: optimizer steps done.
        epoch: epochs done.
        ramp: when sparsity grows; None until that is known.
        begins: sparsity per encoder before the ramp.
        kept: weights kept now, online and momentum.
        flips: mask entries changed since they were last reported, both encoders.
    """

    scores_gradients: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    stores_zeros: ClassVar[bool] = True
    regrow_init: str = "zero"

    @classmethod
    def keeps_latents(cls, config: Any, shared: bool) -> bool:
        """Whether the last values of pruned weights are kept, in `shadow` buffers."""
        return not shared and config.ema_mode == "latent"

    @classmethod
    def prepare(cls, config: Any, module: Any, encoders: list[Encoder]) -> list[Encoder]:
        """Check or change a LightningModule before its optimizer is made and weights are loaded.

        Args:
            config: the method's configuration.
            module: what is trained, with all its heads.
            encoders: its masked encoders, online first.

        Returns:
            the encoders as this method sees them.
        """
        return encoders

    def __init__(
        self,
        config: Any,
        online: Encoder,
        momentum: Encoder | None,
        clock: Clock,
        seed: int = 0,
    ) -> None:
        self.config: Any = config
        self.online = online
        self.momentum = momentum
        self.clock = clock
        self.seed = seed
        self.t = 0
        self.epoch = 0
        self.flips = 0
        self.period = config.update_period or default_period(clock.steps)
        # the update that reaches the final sparsity must be one that the run performs
        self.t_end = min(round(config.ramp_end * clock.steps), clock.steps - 1)
        self.begins = [config.initial, config.momentum[0]][: len(self.encoders)]
        self.ramp = self.plan()
        self._check_room()

    @property
    def encoders(self) -> list[Encoder]:
        """The masked encoders, online first."""
        return [self.online] if self.momentum is None else [self.online, self.momentum]

    @property
    def kept(self) -> list[int]:
        """Kept weights per encoder, as measured."""
        return [encoder.masks.nnz for encoder in self.encoders]

    # -- what a method overrides ------------------------------------------------------------

    def plan(self) -> Ramp | None:
        """The ramp, if it is known before training."""
        return None

    def latest_start(self) -> int | None:
        """Step at which the ramp starts at the latest; None = it may never."""
        return None if self.ramp is None else self.ramp.t0

    def initial_masks(self, encoder: Encoder, sparsity: float) -> Masks:
        """Masks before the ramp."""
        return self.smallest_out(encoder, sparsity)

    def online_masks(self, sparsity: float) -> Masks:
        """New masks of the online encoder; by default magnitude, and nothing comes back."""
        return self.smallest_out(self.online, sparsity, eligible=self.online.masks)

    def momentum_masks(self, encoder: Encoder, sparsity: float) -> Masks:
        """New masks of the momentum encoder; by default magnitude of its latents."""
        return self.smallest_out(encoder, sparsity)

    def due(self) -> bool:
        """Whether masks change after the step under way."""
        return self.ramp is not None and self.ramp.due(self.t)

    def observe(self, finite: Tensor) -> None:
        """Look at the dense, averaged, unscaled gradients of the step under way.

        Only called when `wants_gradients`.

        Args:
            finite: 0-dim bool on the gradients' device; False if any of them is NaN or infinite,
                and then the step does not count.
        """

    def wants_gradients(self) -> bool:
        """Whether `observe` is to see the gradients of the step under way."""
        return self.scores_gradients

    def adjust_gradients(self, optimizer: Optimizer) -> None:
        """Turn the dense gradients into those that clipping and the optimizer see."""
        self.online.mask_gradients()

    def look(self, probe: Any) -> None:
        """Look at the first batch (`sparse_ext.probe.Probe`) before `start`, if `needs_data`."""

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """Called before each batch of epoch `epoch` (0-based); returns whether masks changed."""
        return False

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after epoch `epoch` (1-based); returns figures to log."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """State of a method beyond the step counter and the ramp."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over `extra_state`."""

    # -- what all methods use ---------------------------------------------------------------

    def sparsities(self) -> list[float]:
        """Scheduled sparsity per encoder at this step: the same index for both (Eq. 10-12)."""
        index, n = (0, 1) if self.ramp is None else (self.ramp.index(self.t), self.ramp.n)
        lasts = (self.config.final, self.config.momentum[1])
        ends = zip(self.begins, lasts, strict=False)
        return [cubic(first, last, index, n) for first, last in ends]

    def smallest_out(
        self, encoder: Encoder, sparsity: float, eligible: Mapping[str, Tensor] | None = None
    ) -> Masks:
        """Keep the largest |latent| over all layers together, exactly the budget.

        Args:
            eligible: where weights may be kept; by default everywhere.
        """
        values = {name: value.abs() for name, value in encoder.latents.items()}
        return allocation.global_topk(values, budget(sparsity, encoder), eligible)

    def start(self) -> None:
        """Apply the initial masks; masks from before are never drawn again (section 0.9)."""
        if any(encoder.masks.nnz < encoder.masks.n for encoder in self.encoders):
            self._start_from_present_masks()
            return
        new = [
            self.initial_masks(encoder, sparsity)
            for encoder, sparsity in zip(self.encoders, self.begins, strict=True)
        ]
        self._apply(new, None)
        self.flips = 0

    def after_step(self, optimizer: Optimizer | None = None) -> bool:
        """Count one optimizer step and change masks if that is due; returns whether they did."""
        changed = self.due()
        if changed:
            sparsities = self.sparsities()
            new = [self.online_masks(sparsities[0])]
            if self.momentum is not None:
                new.append(self.momentum_masks(self.momentum, sparsities[1]))
            self._apply(new, optimizer)
        self.t += 1
        return changed

    def close_epoch(self, epoch: int) -> dict[str, float]:
        """Count epoch `epoch` (1-based) as done; returns figures to log."""
        self.epoch = epoch
        return self.end_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Everything beside the buffers that an exact resume needs (tensors and plain data)."""
        return {
            "version": STATE_VERSION,
            "method": self.config.name,
            "t": self.t,
            "epoch": self.epoch,
            "period": self.period,
            "ramp": None if self.ramp is None else [self.ramp.t0, self.ramp.period, self.ramp.n],
            "seed": self.seed,
            "begins": self.begins,
            "layers": self.online.sizes,
            "kept": self.kept,
            "flips": self.flips,
            "extra": self.extra_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; masks must be in place already.

        Raises:
            CheckpointError: if it was taken by another method, from another encoder, or the masks
                in place are not those it was taken with.
        """
        if state["version"] != STATE_VERSION or state["method"] != self.config.name:
            raise CheckpointError(
                f"The checkpoint was trained with sparse.name={state['method']} (state version "
                f"{state['version']}), this run has {self.config.name} ({STATE_VERSION})."
            )
        if dict(state["layers"]) != self.online.sizes:
            odd = set(state["layers"].items()) ^ set(self.online.sizes.items())
            raise CheckpointError(
                f"The checkpoint's prunable layers are not those of this run; they differ in "
                f"{sorted({name for name, _ in odd})[:4]}. Keep backbone, sparse.stem_dense and "
                f"sparse.exclude as they were."
            )
        if list(state["kept"]) != self.kept:
            raise CheckpointError(
                f"The checkpoint says that {list(state['kept'])} weights are kept, its masks keep "
                f"{self.kept}: it has lost its masks or was edited."
            )
        self.t, self.period, self.seed = state["t"], state["period"], state["seed"]
        self.begins, self.epoch = list(state["begins"]), state["epoch"]
        self.ramp = None if state["ramp"] is None else Ramp(*state["ramp"])
        self.flips = state["flips"]
        self.load_extra_state(state["extra"])

    def report_end(self) -> None:
        """Warn if the run ends with another sparsity than it was asked for."""
        wanted = (self.config.final, self.config.momentum[1])
        for encoder, final in zip(self.encoders, wanted, strict=False):
            if encoder.masks.nnz != budget(final, encoder):
                log.warning(
                    "The run ended at sparsity %.4f, not at the final %s: %s.",
                    *(encoder.masks.sparsity, final, self._why_not()),
                )

    def _why_not(self) -> str:
        if self.ramp is None:
            return "the ramp never started"
        return f"it stopped after {self.t} steps, the ramp ends at step {self.ramp.end}"

    def _start_from_present_masks(self) -> None:
        """Trained before: the ramp begins at the sparsity that is there."""
        self.begins = [encoder.masks.sparsity for encoder in self.encoders]
        log.info("The encoders have masks already: sparsity starts from %s.", self.begins)
        lasts = (self.config.final, self.config.momentum[1])
        for encoder, last in zip(self.encoders, lasts, strict=False):
            if encoder.masks.nnz < budget(last, encoder):
                raise ConfigError(
                    f"The encoder has a sparsity of {encoder.masks.sparsity:.4f} already, more "
                    f"than the final {last} asked for: raise sparse.final, or start from a denser "
                    f"encoder."
                )

    def _apply(self, new: list[Masks], optimizer: Optimizer | None) -> None:
        for encoder, masks in zip(self.encoders, new, strict=True):
            self.flips += encoder.change(masks, self.regrow_init, optimizer)

    def _check_room(self) -> None:
        """The ramp must fit between its latest start and its end, or `final` is never reached."""
        start = self.latest_start()
        if start is None or self.config.final <= self.config.initial:
            return
        room = self.t_end - Ramp.plan(start, self.t_end, self.period).t0
        if room >= self.period:
            return
        message = (
            f"The ramp may start as late as step {start} and must end by step {self.t_end} "
            f"(sparse.ramp_end={self.config.ramp_end} of {self.clock.steps} steps), which leaves "
            f"no room for one update period of {self.period} steps"
        )
        if self.config.update_period is not None:
            raise ConfigError(f"{message}: lower sparse.update_period, or train longer.")
        log.warning("%s: sparsity %s will not be reached.", message, self.config.final)


def default_period(steps: int) -> int:
    """Update period of a run of `steps` optimizer steps, in proportion to the paper's."""
    return min(CIFAR_PERIOD, max(1, steps // CIFAR_UPDATES))


def budget(sparsity: float, encoder: Encoder) -> int:
    """Weights that `encoder` keeps at `sparsity`: round half to even (section 1.1)."""
    return allocation.budget(sparsity, encoder.masks.n)


def build_pruner(
    config: SparseConfig,
    online: Encoder,
    momentum: Encoder | None,
    clock: Clock,
    seed: int = 0,
) -> Pruner:
    """The pruner that `config` names."""
    listen()
    return method_class(config)(config, online, momentum, clock, seed)


def method_class(config: SparseConfig) -> type[Pruner]:
    """The class of a method's pruner: `sparse_ext.methods.<name>.PRUNER`."""
    from importlib import import_module

    return import_module(f"sparse_ext.methods.{config.name}").PRUNER
