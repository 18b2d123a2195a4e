# SPDX-License-Identifier: MIT
"""Cost of training a sparse encoder, as a fraction of training it dense (section 14).

Per image and view a dense network pays its forward pass F three times: forward, gradient of the
activations, gradient of the weights; a momentum encoder pays its forward pass once. Papers count a
sparse network in three ways, and even within one paper not the same for every row, so all three
are reported. All three are linear in the densities, so the ratio of a run is the mean over its
steps (`sparse_ext.training.cost_meter`). Everything here is modelled, nothing is measured in
seconds.
"""

from __future__ import annotations

CONVENTIONS = {
    "A": "3 f_online + f_momentum over 4: every pass of the online encoder is sparse (RigL)",
    "B": "2 f_online + 1 + f_momentum over 4: the gradient of the weights stays dense",
    "C": "f_online + f_momentum over 2: forward passes only",
}
SHARED_CONVENTIONS = {
    "A": "f_online: one encoder, every pass sparse",
    "B": "2 f_online + 1 over 3: the gradient of the weights stays dense",
    "C": "f_online: forward passes only",
}


def training_ratios(f_online: float, f_momentum: float | None = None) -> dict[str, float]:
    """Training cost over dense training cost, by convention.

    Args:
        f_online: MACs of the online encoder's forward pass over the dense ones.
        f_momentum: the same for the momentum encoder; None for a method without one.
    """
    if f_momentum is None:
        return {"A": f_online, "B": (2 * f_online + 1) / 3, "C": f_online}
    return {
        "A": (3 * f_online + f_momentum) / 4,
        "B": (2 * f_online + 1 + f_momentum) / 4,
        "C": (f_online + f_momentum) / 2,
    }
