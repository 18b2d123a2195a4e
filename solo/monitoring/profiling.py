# SPDX-License-Identifier: MIT
"""`performance.profile`: where the time of a training step goes.

Lightning names what it does to its profiler, and `section` names the rest. All time between the
moments when a step asks for its batch belongs to exactly one part: that of the innermost name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler
from torch import nn

from solo.files.whole import write_json

FILE = "profile.json"
WARM_UP = 2  # steps that are not counted: compilation, the choice of algorithms, the first fetch

DATA_WAIT, TRANSFER, AUGMENTATION = "data wait", "copy to device", "augmentation"
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
MASKS, MOMENTUM, LOGGING = "masks and gates", "momentum encoder", "logging"
CALLBACKS, OTHER = "other callbacks", "everything else"
PARTS = (
    *(DATA_WAIT, TRANSFER, AUGMENTATION, FORWARD, BACKWARD, OPTIMIZER),
    *(MASKS, MOMENTUM, LOGGING, CALLBACKS, OTHER),
)

# Ends of Lightning's names of actions; the first that fits counts. What fits none belongs to
# whatever it happens in.
_ENDS = {
    "train_dataloader_next": DATA_WAIT,
    "batch_to_device": TRANSFER,
    ".training_step": FORWARD,
    ".backward": BACKWARD,
    "optimizer_step": OPTIMIZER,
    "optimizer_zero_grad": OPTIMIZER,
    "lr_scheduler_step": OPTIMIZER,
}
_STEP = "run_training_batch"
# Names that mean that the last step is over and the next has not begun.
_BETWEEN = ("epoch_end", "epoch_start", "validation", "_EvaluationLoop", "checkpoint", "fit_end")

_active: StepProfiler | None = None


def section(part: str) -> AbstractContextManager:
    """Inside, time belongs to `part` (one of `PARTS`), if this run is profiled."""
    return nullcontext() if _active is None else _active.profile(part)


class StepProfiler(Profiler):
    """Adds up the time of each part over all steps but the first.

    A GPU works on while Python goes ahead, so both are brought together wherever the part changes:
    the shares are right, the whole is slower than without a profile.

    Args:
        mask_callbacks: `state_key`s of the callbacks whose time counts as masks and gates.
        clock: seconds that only grow.

    Attributes:
        seconds: time of each part.
        steps: training steps in it.
    """

    def __init__(
        self, mask_callbacks: Iterable[str] = (), clock: Callable[[], float] = time.perf_counter
    ):
        super().__init__()
        self.clock = clock
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.steps = 0
        self._warm_up = WARM_UP
        self._mask_callbacks = tuple(f"[Callback]{key}." for key in mask_callbacks)
        self._parts: list[str] = [OTHER]
        self._in_step = False
        self._last = clock()

    @contextmanager
    def receiving(self) -> Iterator[StepProfiler]:
        """Context inside which `section` reports its times to this profiler."""
        global _active
        before, _active = _active, self
        try:
            yield self
        finally:
            _active = before

    def watch(self, module: nn.Module, part: str) -> None:
        """Count the calls of `module` as `part`."""
        module.register_forward_pre_hook(lambda *_: self.start(part))
        module.register_forward_hook(lambda *_: self.stop(part), always_call=True)

    def start(self, action_name: str) -> None:
        """Count time for this action from now on."""
        part = self._part(action_name)
        self._change(part)
        self._parts.append(part)
        if any(word in action_name for word in _BETWEEN):
            self._in_step = False
        elif part == DATA_WAIT:
            self._in_step = True

    def stop(self, action_name: str) -> None:
        """Time belongs to what was under way before this action."""
        if len(self._parts) > 1:
            self._change(self._parts[-2])
            self._parts.pop()
        if action_name == _STEP:
            self.steps += 1
            if self._warm_up:
                self._warm_up -= 1
                self.steps, self.seconds = 0, dict.fromkeys(PARTS, 0.0)

    def _part(self, action: str) -> str:
        if action in self.seconds:
            return action
        if action.startswith("[Callback]"):
            return MASKS if action.startswith(self._mask_callbacks) else CALLBACKS
        if action.startswith("[LightningModule]") and action.endswith(".on_train_batch_end"):
            return MOMENTUM
        ends = (part for end, part in _ENDS.items() if action.endswith(end))
        return next(ends, self._parts[-1])

    def _change(self, part: str) -> None:
        """Close the account of the part under way, unless it goes on."""
        if part == self._parts[-1] and self._in_step:
            return
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = self.clock()
        if self._in_step:
            self.seconds[self._parts[-1]] += now - self._last
        self._last = now

    def table(self, images_per_step: int) -> str:
        """The parts with milliseconds per step and shares, as text."""
        total = sum(self.seconds.values())
        if not self.steps or not total:
            return f"Profile: too few steps ({WARM_UP} for warming up, then those that count)."
        rate = self.steps * images_per_step / total
        lines = [
            f"Where the time goes ({self.steps} steps after {WARM_UP} of warm-up, "
            f"{rate:,.0f} images/s)",
            f"{'part':<20}{'ms per step':>12}{'share':>9}",
        ]
        for part, seconds in (*self.seconds.items(), ("the step", total)):
            if seconds:
                per_step = 1000 * seconds / self.steps
                lines.append(f"{part:<20}{per_step:>12.3f}{seconds / total:>9.1%}")
        return "\n".join(lines)

    def write(self, folder: Path, images_per_step: int) -> None:
        """Leave the same in `profile.json` of the run's folder."""
        parts = {part: seconds for part, seconds in self.seconds.items() if seconds}
        content = {"steps": self.steps, "images_per_step": images_per_step, "seconds": parts}
        write_json(folder / FILE, content, indent=2)
