# SPDX-License-Identifier: MIT
"""The two classes that methods derive from."""

from solo.methods.base_method import BaseMethod
from solo.methods.base_momentum import BaseMomentumMethod
from solo.utils.lr_scheduler import static_lr

__all__ = ["BaseMethod", "BaseMomentumMethod", "static_lr"]
