# SPDX-License-Identifier: MIT
"""PoolFormers (Yu et al., 2022)."""

from solo.backbones.options import lazy_builder, lazy_modules

__all__ = ["poolformer_m36", "poolformer_m48", "poolformer_s12", "poolformer_s24", "poolformer_s36"]

poolformer_s12 = lazy_builder(__name__, "poolformer", "poolformer_s12")
poolformer_s24 = lazy_builder(__name__, "poolformer", "poolformer_s24")
poolformer_s36 = lazy_builder(__name__, "poolformer", "poolformer_s36")
poolformer_m36 = lazy_builder(__name__, "poolformer", "poolformer_m36")
poolformer_m48 = lazy_builder(__name__, "poolformer", "poolformer_m48")

__getattr__ = lazy_modules(__name__)
