# SPDX-License-Identifier: MIT
"""The only Lightning glue: it owns the order of things within one optimizer step.

    forward, backward (DDP averages)      Lightning and the method
    score update, gradient *= mask        on_before_optimizer_step: unscaled, before clipping
    clipping, optimizer step              Lightning
    weight *= mask, state *= mask,        post hook of the optimizer: not called when the AMP
    new masks if due, t += 1              scaler skips the step
    momentum encoder on latents           the module's `momentum_updater`, a MaskedEMA

(section 0.4 of the algorithms specification). All counts are optimizer steps.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from solo.errors import CheckpointError
from solo.monitoring.profiling import MASKS, section
from solo.programs.dry_run import is_dry
from solo.utils import ranks
from solo.utils.encoders import encoders_of
from sparse_ext.compat import put_first, unwrapped
from sparse_ext.config.sections import SparseConfig
from sparse_ext.kernels.element import choice
from sparse_ext.masks import packing
from sparse_ext.masks.encoder import Encoder, InvariantError, check_stored
from sparse_ext.masks.masked_layers import Masked
from sparse_ext.masks.masking import selection
from sparse_ext.pruning.log import in_words, log, steps
from sparse_ext.pruning.measuring import measure
from sparse_ext.pruning.pruner import Pruner
from sparse_ext.pruning.reaching import report_end
from sparse_ext.pruning.registry import build_pruner, method_class
from sparse_ext.pruning.scores.first_batch import Probe
from sparse_ext.training import kernels, mask_agreement, resume, run_checks, slimming
from sparse_ext.training.cost_meter import CostMeter, image_shape
from sparse_ext.training.mask_figures import epoch_figures
from sparse_ext.training.momentum_encoder import install
from sparse_ext.training.teachers import Follower

STATE_KEY = "sparse_state"


class PruningCallback(Callback):
    """Makes the encoders of one LightningModule sparse while it trains.

    Get one from `sparse_ext.sparsify`, or from the configuration of a run of `solo`.

    Args:
        config: the pruning method and its settings.
        seed: of random masks where `config.seed` is None.

    Attributes:
        pack: checkpoints hold numbers in a form that compresses well.
        pruner: the method at work; None before training.
        meter: what training costs.
    """

    def __init__(self, config: SparseConfig, seed: int | None = None) -> None:
        self.config = config
        self.seed = config.seed if config.seed is not None else (seed or 0)
        self.pruner: Pruner | None = None
        self.pack = False
        self.meter = CostMeter()
        self._watch = kernels.Stopwatch()
        self._encoders: list[Encoder] = []
        self._restored: dict[str, Any] | None = None
        self._hook: Any = None
        self._loading: Any = None
        self._graded = False
        self._slimming: slimming.Slimming | None = None
        self._follower: Follower | None = None  # of momentum encoders updated in training steps
        self._unseen = False  # the initial masks wait for the first batch
        self._logged: tuple[int, list[float]] = (-1, [])  # step and sparsity of the last epoch end
        self._updated = False  # figures of a mask update wait for the end of the batch
        self._equipped = False  # encoders have layers with a sparse kernel

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not hooked into this optimizer."""
        return {**self.__dict__, "_hook": None, "_loading": None}

    @property
    def running(self) -> Pruner:
        """The pruner at work, which exists during training only."""
        if self.pruner is None:
            raise RuntimeError("PruningCallback: training has not started.")
        return self.pruner

    # -- before training --------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that this run can be sparse and add the buffers that a checkpoint may fill."""
        if stage != "fit":
            return
        run_checks.check_strategy(trainer, pl_module)
        run_checks.check_callbacks(trainer)
        self._encoders = run_checks.encoders_of(pl_module)
        self._restored = None
        self.meter = CostMeter()
        shared = len(self._encoders) == 1
        run_checks.check_encoders(self._encoders, self.config)
        method = method_class(self.config)
        self._encoders = method.prepare(self.config, pl_module, self._encoders)
        if self.config.slim_at is not None:
            slimming.check(self.config, self._encoders)
        needs = method.needs(self.config, shared)
        if needs.latents:
            for encoder in self._encoders:
                encoder.add_buffer("shadow")
        if needs.mean_gradient:
            self._encoders[0].add_buffer("score")
        if not shared and needs.stored_zeros:
            self._follower = install(pl_module, self.config.ema_mode)
        self._equipped = kernels.equip(trainer, pl_module, self.config, needs.stored_zeros)
        run_checks.ignore_in_ddp(pl_module)
        self._loading = pl_module.register_load_state_dict_pre_hook(run_checks.check_storage)
        # epoch ends are counted before anyone else's hook may write a checkpoint of that epoch
        put_first(trainer, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the pruner and, unless this is a resumed run, apply the initial masks."""
        self._loading.remove()
        optimizer = run_checks.only_optimizer(trainer)
        online, *rest = self._encoders
        momentum = rest[0] if rest else None
        clock = run_checks.clock_of(trainer)
        parts = self.config, online, momentum, clock, self.seed
        slimmed = resume.slimmed(self._restored)
        self.pruner = build_pruner(*parts) if slimmed is None else Pruner(*parts, slimmed)
        self._slimming = None if self.config.slim_at is None else slimming.Slimming(self.pruner)
        for encoder in self._encoders:
            encoder.widen_buffers()
            ranks.share(encoder.buffers())
        self.pruner.enter(pl_module, fresh=self._restored is None)
        self._unseen = self._restored is None and self.pruner.needs_batch
        if self._restored is not None:
            resume.restore(self.pruner, self._restored)
            self.meter.load_state_dict(self._restored["cost"])
        elif not self._unseen:
            self.pruner.start()
        self._settle(optimizer)
        self._detach()
        self._hook = optimizer.register_step_post_hook(self._after_step)
        log.info(
            "%s, granularity %s: masks change every %s, sparsity now %s.\n%s",
            *(self.config.name, self.config.granularity, steps(self.pruner.period)),
            in_words([encoder.masks.sparsity for encoder in self._encoders]),
            selection(next(iter(encoders_of(pl_module).values())), self.config).describe(),
        )
        if told := self.config.in_weights():
            log.info("%s.", told)

    # -- one optimizer step -----------------------------------------------------------------

    def on_before_backward(self, *_: Any) -> None:
        """The training step may have averaged the momentum encoder."""
        self._follow()

    def _follow(self) -> None:
        if self._follower is not None:
            self._follower.follow()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Score from the dense, unscaled, unclipped gradient; then mask that gradient."""
        self._follow()
        grads = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        self._graded = bool(grads)
        if not grads:
            return
        if self.running.wants_gradients():
            self.running.observe(all_finite(grads))
        self.running.adjust_gradients(optimizer)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._graded:
            with section(MASKS):
                self._mask(optimizer)
                if self._follower is not None:
                    self._follower.remember()

    def _mask(self, optimizer: Optimizer) -> None:
        pruner = self.running
        pruner.online.project(optimizer)
        self.meter.step()
        started = time.perf_counter()
        self._updated = pruner.after_step(optimizer)
        if self._updated:
            self._watch.update(time.perf_counter() - started)
            self._agree(f"Masks after step {pruner.t}")
        if self.config.debug:
            pruner.check(optimizer)

    # -- epochs -----------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Initial masks that depend on data; masks that change between batches; slimming.

        Also makes up for an epoch whose last batch, but not its end, is in the checkpoint.
        Lightning calls no hook of that epoch again; the momentum encoder has caught up by now.
        """
        if self.running.epoch < trainer.current_epoch:
            self.running.close_epoch(trainer.current_epoch)
        if self._slimming is not None and self._slimming.due(self.running):
            self.pruner, report = self._slimming(self.running, trainer.optimizers[0])
            self.meter.looked = self.meter.looked and not report.removed
            if report.removed:
                self._agree(f"Slim encoders before step {self.pruner.t}")
                slimming.wrap_again(trainer.strategy)
        if not self.meter.looked:
            self.meter.look([unwrapped(e) for e in encoders_of(pl_module).values()], batch)
        measure(self.running, image_shape(batch))
        if self._unseen:
            self._unseen = False
            self.running.look(Probe(pl_module, trainer, batch))
            self.running.start()
            self._settle(trainer.optimizers[0])
        if self.running.begin_batch(trainer.current_epoch, trainer.optimizers[0]):
            self._agree(f"Masks before step {self.running.t}")
        if self._equipped:
            share = self.running.gradient_share
            kernels.announce(pl_module, self.running.wants_gradients(), share)
        self._watch.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Log every mask update by itself, whatever the logging interval."""
        self._watch.stop()
        figures = self.running.update_figures if self._updated else {}
        self._updated = False
        if figures:
            named = {f"sparse/{name}": value for name, value in figures.items()}
            for logger in trainer.loggers:
                logger.log_metrics(named, step=self.running.t - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the method look at the epoch (CSI), and log."""
        self._follow()
        figures = self.running.close_epoch(trainer.current_epoch + 1)
        sparsities = self.running.weight_sparsities()
        self._logged = self.running.t, sparsities
        figures = epoch_figures(self.running, sparsities, figures)
        figures |= self.meter.figures() | self._watch.figures()
        used = kernels.layers_in_use(pl_module)
        if used:
            figures["kernel_layers"] = float(used.get("backbone", 0))
        named = {f"sparse/{name}": value for name, value in figures.items()}
        pl_module.log_dict(named, rank_zero_only=True)  # equal on all ranks

    # -- state ------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Masks, shadows and scores are buffers of the module, and packed; the rest goes here."""
        pruner = self.pruner
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = dict(checkpoint["state_dict"])
            scores = pruner is None or pruner.has_updates_left
            masked = [name for name, m in pl_module.named_modules() if isinstance(m, Masked)]
            packing.pack_(checkpoint["state_dict"], masked, scores, self.pack)
        if pruner is not None:
            cost = {"cost": self.meter.state_dict()}
            checkpoint[STATE_KEY] = resume.take(pruner) | cost
            if self._equipped:
                checkpoint[STATE_KEY]["kernels"] = choice.decisions()
            if checkpoint.get("optimizer_states"):
                parts = trainer.optimizers[0], pruner.online
                resume.pack_optimizer(checkpoint, *parts, planes=self.pack)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the sparse state of a checkpoint until training starts."""
        if STATE_KEY not in checkpoint:
            raise CheckpointError(
                "This checkpoint holds no state of a sparse run, so training cannot go on from it "
                "with `sparse` set. Leave out the sparse section, or start anew."
            )
        self._restored = checkpoint[STATE_KEY]
        choice.repeat(self._restored.get("kernels", {}))
        if "packed" in checkpoint[STATE_KEY]:
            resume.unpack_optimizer(checkpoint, self._encoders[0])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the run never got where it should; leave optimizer and layers as they were.

        A run that was finished before it was started again has nothing to say, nor has a dry one.

        Raises:
            InvariantError: something has written to weights under the masks.
        """
        self._detach()
        kernels.unequip(pl_module)
        if self.pruner is None:
            return
        self._follow()
        if not is_dry(trainer):
            report_end(self.pruner)
        if advice := self._watch.advice():
            log.info(advice)
        check_stored(self._encoders)
        step, logged = self._logged
        if step == self.pruner.t and logged != self.pruner.weight_sparsities():
            raise InvariantError(
                f"The masks have sparsities of {self.pruner.weight_sparsities()}, but {logged} "
                f"were logged after the last step: something else has changed the masks."
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave optimizer and encoders as they were when a run ends with an error."""
        self._detach()
        kernels.unequip(pl_module)

    def _detach(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook = None

    def _settle(self, optimizer: Optimizer) -> None:
        """Masks are in place: pruned weights are zero, and every rank has the same."""
        for encoder in self._encoders:
            encoder.project(optimizer)
        if self._follower is not None:
            self._follower.remember()
        self._agree("Masks at the start")

    def _agree(self, what: str) -> None:
        if ranks.world_size() > 1:
            for encoder in self._encoders:
                mask_agreement.check_equal(encoder.masks.checksum(), what)


def all_finite(grads: list[Tensor]) -> Tensor:
    """Whether no gradient is NaN or infinite, as a 0-dim tensor on their device."""
    return torch.stack([grad.sum(dtype=torch.float32) for grad in grads]).isfinite().all()
