# SPDX-License-Identifier: MIT
"""ReSSL (Zheng et al. 2021, equation 5): agree on the similarities to a queue."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from solo.losses.precision import in_float32


@in_float32
def ressl_loss_func(
    q: Tensor, k: Tensor, queue: Tensor, temperature_q: float = 0.1, temperature_k: float = 0.04
) -> Tensor:
    """Cross entropy of the student's relation to the queue under the teacher's, sharper one.

    Args:
        q: l2-normalised online features of the strongly augmented view, (N, D).
        k: l2-normalised momentum features of the weakly augmented view, (N, D); no gradient.
        queue: l2-normalised features as rows, (K, D).
        temperature_q: student's temperature.
        temperature_k: teacher's temperature.
    """
    student = F.log_softmax(q @ queue.T / temperature_q, dim=1)
    teacher = F.softmax(k.detach() @ queue.T / temperature_k, dim=1)
    return -(teacher * student).sum(dim=1).mean()
