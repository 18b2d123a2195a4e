# SPDX-License-Identifier: MIT
"""`torch.compile` where it works, the plain function where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


class CompiledOrPlain:
    """Calls the compiled `function`; when compiling fails, says so in one line and goes on plain.

    Compiling needs a C++ compiler on the CPU and Triton on a GPU, which not every machine has.

    Args:
        function: pure function of tensors, or a module.
        what: what it is, for the message.
    """

    def __init__(self, function: Callable, what: str):
        self.function, self.what = function, what
        self._call: Callable | None = None

    def __call__(self, *args: Any) -> Any:
        """The result of `function(*args)`."""
        if self._call is self.function:
            return self.function(*args)
        try:
            if self._call is None:
                self._call = self._compiled()
            return self._call(*args)
        except Exception as error:  # the compiler's own errors have no common class
            self._call = self.function
            result = self.function(*args)  # an error of the function itself is raised here
            lines = str(error).strip().splitlines() or [""]
            warnings.warn(
                f"performance.compile: torch.compile fails for the {self.what} on this machine "
                f"({type(error).__name__}: {lines[0][:200]}); it runs uncompiled, with equal "
                "results. performance.compile=False silences this."
            )
            return result

    def _compiled(self) -> Callable:
        return torch.compile(self.function, dynamic=False)
