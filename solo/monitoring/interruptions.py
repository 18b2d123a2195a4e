# SPDX-License-Identifier: MIT
"""Runs that are told to stop: Ctrl-C, SIGTERM, the warning signal of a cluster; and going on.

A run that is stopped between two batches saves its state and leaves. Going on from there, it skips
the batches of the epoch that it has seen, so that it ends as if it had never been stopped: order,
augmentations and draws of a step follow from seed, epoch and batch alone.
"""

from __future__ import annotations

import signal
import threading
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

KEY = "within_epoch"
#: signals that stop a run; the last two are what clusters send some time before SIGTERM
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")


class Stopped(SystemExit):
    """A run was told to stop and did so between two batches; its exit code is 128 + signal."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signal = signal.Signals(signum).name


class Interruptions(Callback):
    """Stops between two batches when a signal has arrived; a second Ctrl-C stops at once.

    Args:
        saver: `Checkpointer` of the run; None where nothing is saved.
    """

    def __init__(self, saver: Any = None):
        super().__init__()
        self.saver = saver
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals that stop a run, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in SIGNALS:
            if signum := getattr(signal, name, None):
                self._before[signum] = signal.signal(signum, self._receive)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave, on all ranks together, when any of them has heard a signal."""
        received = self._received or 0
        if trainer.world_size > 1:
            if batch_idx % max(1, trainer.log_every_n_steps):
                return  # asking the others waits for them
            heard = trainer.strategy.reduce_boolean_decision(bool(received), all=False)
            received = received or (signal.SIGTERM if heard else 0)
        if not received:
            return
        saves = self.saver is not None and trainer.global_step > 0
        if saves and batch_idx == 0 and not self.saver.has_epoch(trainer.current_epoch - 1):
            return  # nothing of this epoch is done, and the one before is not saved: one batch more
        if saves and batch_idx:
            self.saver.save_within_epoch(trainer)
        raise Stopped(received)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Leave; what the epoch has trained is not between two batches here, and is repeated."""
        if self._received and trainer.world_size == 1:
            raise Stopped(self._received)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back to whoever had them before the run."""
        self._restore()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the signals back to whoever had them before the run."""
        self._restore()

    def _receive(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT:
            if self._received == signum:
                raise KeyboardInterrupt
            print("\nStopping after this batch; Ctrl-C once more stops at once.", flush=True)
        self._received = signum

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            # after a whole run Lightning has done so already; what was found here is a handler of
            # its own, which would keep the trainer, and with it the network, in memory
            if signal.getsignal(signum) == self._receive:
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before = {}


class WithinEpoch(Callback):
    """Lets a run go on in the middle of an epoch, after the batches that it has seen.

    Callbacks that gather something over an epoch have `epoch_state()`, plain values and tensors,
    and `restore_epoch(state)`.

    Attributes:
        saving: the state that is saved is one between two batches.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saving = False
        self._loaded: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how many batches are done, without the next one, which is fetched already.

        What the last validation has counted goes: a run that goes on has none behind it.
        """
        validated = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
        validated["current"] = dict.fromkeys(validated["current"], 0)
        validated["is_last_batch"] = False
        if not self.saving:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counted in (progress["total"], progress["current"]):
            counted["ready"] = counted["completed"]
        progress["is_last_batch"] = False
        states = {
            callback.state_key: callback.epoch_state()
            for callback in trainer.callbacks  # type: ignore[attr-defined]
            if hasattr(callback, "epoch_state")
        }
        checkpoint[KEY] = {"batches": progress["current"]["completed"], "callbacks": states}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember how many batches are done, and what was gathered."""
        self._loaded = checkpoint.get(KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the loader begin after the batches that are done."""
        if self._loaded is None:
            return
        loader = trainer.train_dataloader
        if hasattr(loader, "first_batch"):
            loader.first_batch = self._loaded["batches"]
        else:
            warnings.warn(
                f"{type(loader).__name__} cannot begin in the middle of an epoch: the run goes on "
                "with batches that it has seen in this epoch",
                stacklevel=2,
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before the first batch: everyone learns which epoch it is, and what it has gathered."""
        if self._loaded is None:
            return
        loaded, self._loaded = self._loaded, None
        # Lightning leaves these out in an epoch that it continues
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_train_epoch_start(trainer, pl_module)
        pl_module.on_train_epoch_start()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if (state := loaded.get("callbacks", {}).get(callback.state_key)) is not None:
                callback.restore_epoch(state)
