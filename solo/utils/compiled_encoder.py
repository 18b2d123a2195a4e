# SPDX-License-Identifier: MIT
"""`performance.compile` for encoders: `torch.compile` in place; no new names in checkpoints."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from solo import extensions
from solo.compat import call_instead, plain_call
from solo.data.views.batched.compiled import CompiledOrPlain
from solo.utils.encoders import NAMES, encoders_of

# Random numbers of the uncompiled encoder, so that dropout and random masks are the same.
OPTIONS = {"fallback_random": True}


class CompiledEncoder(CompiledOrPlain):
    """Stands for an encoder's call: compiled while it trains, plain in evaluation.

    Validation has batches of other sizes, each of which would be compiled anew. When compiling
    fails, or an extension needs the encoder uncompiled, one warning says so and it runs plain.

    Args:
        encoder: its forward pass takes tensors and numbers by position.
        what: what it is, for messages.
        frozen: it stays in evaluation mode while something else trains; compile that.
    """

    def __init__(self, encoder: nn.Module, what: str, frozen: bool = False):
        super().__init__(plain_call(encoder), what)
        self.encoder, self.frozen = encoder, frozen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the encoder returns."""
        if kwargs or self.encoder.training == self.frozen:
            return self.function(*args, **kwargs)
        return super().__call__(*args)

    def _compiled(self) -> Any:
        # Only now, as extensions change an encoder until its first step.
        reason = extensions.runs_uncompiled(self.encoder)
        if reason:
            warnings.warn(f"performance.compile: the {self.what} runs uncompiled, as {reason}.")
            return self.function
        return torch.compile(self.function, dynamic=False, options=OPTIONS)


def compile_encoders(module: nn.Module, frozen: bool = False) -> None:
    """Compile `module.backbone` and, where there is one, `module.momentum_backbone`, in place.

    Parameters keep their names; copies and pickles are uncompiled.

    Args:
        module: a method, or a linear classifier on its encoder.
        frozen: see `CompiledEncoder`.
    """
    for name, encoder in encoders_of(module).items():
        call_instead(encoder, CompiledEncoder(encoder, NAMES[name], frozen))
