# SPDX-License-Identifier: MIT
"""Distance of a student's features from a teacher's (feature distillation without labels)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from solo.errors import ConfigError, did_you_mean

KINDS = ("cosine", "smooth_l1")


def distill_loss_func(student: Tensor, teacher: Tensor, kind: str = "cosine") -> Tensor:
    """Mean distance of features from those of a teacher, who gets no gradient.

    `cosine` is 1 - cos, between 0 and 2; `smooth_l1` is the Huber loss with beta 1, divided by the
    mean square of the teacher's features, so that its scale does not matter.

    >>> x = torch.randn(4, 8)
    >>> distill_loss_func(x, x), distill_loss_func(x, x, "smooth_l1")
    (tensor(0.), tensor(0.))

    Args:
        student: features (N, F).
        teacher: features (N, F) of the same images.
        kind: `cosine` or `smooth_l1`.

    Returns:
        a scalar in float32.

    Raises:
        ConfigError: an unknown kind, or features of other widths.
    """
    if student.shape != teacher.shape:
        raise ConfigError(
            f"distillation compares features of one shape: the student's are "
            f"{tuple(student.shape)}, the teacher's {tuple(teacher.shape)}."
        )
    student, teacher = student.float(), teacher.detach().float()
    if kind == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    if kind == "smooth_l1":
        scale = teacher.square().mean().clamp(min=1e-12)
        return F.smooth_l1_loss(student, teacher) / scale
    raise ConfigError(f"the distillation loss '{kind}' is unknown. {did_you_mean(kind, KINDS)}")
