# SPDX-License-Identifier: MIT
"""What a pruning method may answer and be told; by default it has nothing to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from sparse_ext.masks.encoder import Encoder


class Hooks:
    """The optional part of a method: what it needs, and what it wants to see during training.

    Attributes:
        scores_gradients: whether the running mean of |gradient| is kept for the online encoder.
        needs_data: whether the initial masks depend on a batch; `look` then comes before `start`.
        stores_zeros: whether pruned weights are stored as zero; False for methods with one latent
            weight under several masks (see `sparse_ext.masks.living_weights`).
        regrow_init: start value of a regrown weight, `zero` or `latent`.
    """

    scores_gradients: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    stores_zeros: ClassVar[bool] = True
    regrow_init: str = "zero"

    @classmethod
    def keeps_latents(cls, config: Any, shared: bool) -> bool:
        """Whether the last values of pruned weights are kept, in `shadow` buffers.

        Where no zeros are stored, the weights are the latent ones.
        """
        return cls.stores_zeros and not shared and config.ema_mode == "latent"

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

    def enter(self, module: Any, fresh: bool) -> None:
        """Called when training starts, before masks are made or restored.

        Args:
            module: what is trained, with all its heads, as the strategy set it up.
            fresh: this run is not resumed.
        """

    def start_is_given(self) -> bool:
        """Whether the user named the step at which the ramp starts."""
        return False

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

    def look(self, probe: Any) -> None:
        """Look at the first batch before `start`, if `needs_data`.

        Args:
            probe: a `sparse_ext.pruning.scores.first_batch.Probe`.
        """

    def begin_batch(self, epoch: int, optimizer: Optimizer | None = None) -> bool:
        """Called before each batch of epoch `epoch` (0-based); returns whether masks changed."""
        return False

    def update_figures(self) -> dict[str, float]:
        """Figures to log after a mask update."""
        return {}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Called after epoch `epoch` (1-based); returns figures to log."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """State of a method beyond the step counter and the ramp."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take over `extra_state`."""
