# SPDX-License-Identifier: MIT
"""AlexNet (Krizhevsky, 2014), as Caron et al. prune it."""

from solo.backbones.options import lazy_builder

__all__ = ["alexnet"]

alexnet = lazy_builder(__name__, "alexnet", "alexnet")
