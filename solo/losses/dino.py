# SPDX-License-Identifier: MIT
"""DINO (Caron et al. 2021, algorithm 1): self-distillation with centring and sharpening."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from solo.losses.precision import in_float32
from solo.utils.ranks import concat_all_gather_no_grad
from solo.utils.sinkhorn_knopp import SinkhornKnopp


def dino_loss_func(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Cross entropy of every teacher's view with every student's other view; mean over the pairs.

    Args:
        student: log probabilities (N, K) of each view, the teacher's views first.
        teacher: probabilities (N, K) of each of the teacher's views.
    """
    losses = [
        -(q * p).sum(dim=-1).mean()
        for i, q in enumerate(teacher)
        for j, p in enumerate(student)
        if i != j
    ]
    return torch.stack(losses).mean()


@torch.no_grad()
def moved_center(center: Tensor, teacher_output: Tensor, momentum: float) -> Tensor:
    """The running centre of a teacher's outputs, moved towards their mean over all processes.

    Args:
        center: (1, K).
        teacher_output: (M, K); every process may have another M, also 0.
        momentum: part of the old centre that stays (equation 4).
    """
    total = teacher_output.to(center.dtype).sum(dim=0, keepdim=True)
    count = torch.tensor([len(teacher_output)], device=total.device, dtype=total.dtype)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        dist.all_reduce(count)
    moved = center * momentum + total / count.clamp(min=1) * (1 - momentum)
    return torch.where(count > 0, moved, center)


class DINOLoss(nn.Module):
    """Cross entropy between the teacher's and the student's outputs of different views.

    Args:
        num_prototypes: output dimension K.
        warmup_teacher_temp: teacher's temperature in the first epoch.
        teacher_temp: teacher's temperature after the warm-up.
        warmup_teacher_temp_epochs: epochs of linear warm-up.
        num_epochs: epochs of the whole run.
        student_temp: student's temperature.
        num_large_crops: views that the student's output consists of.
        center_momentum: momentum of the running centre.
        sinkhorn_iters: balance the teacher's outputs over the batch of all processes by that many
            iterations of Sinkhorn-Knopp (DINOv2) instead of centring them; 0 centres.

    Attributes:
        epoch: current epoch, set by the training loop; selects the teacher's temperature.
        center: running mean of the teacher's outputs, buffer (1, K).
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        num_epochs: int,
        student_temp: float = 0.1,
        num_large_crops: int = 2,
        center_momentum: float = 0.9,
        sinkhorn_iters: int = 0,
    ):
        super().__init__()
        self.epoch = 0
        self.student_temp = student_temp
        self.num_large_crops = num_large_crops
        self.center_momentum = center_momentum
        self.sinkhorn_iters = sinkhorn_iters
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        warmup = int(warmup_teacher_temp_epochs)
        self.teacher_temp_schedule = np.concatenate(
            [
                np.linspace(warmup_teacher_temp, teacher_temp, warmup),
                np.full(max(0, num_epochs - warmup), teacher_temp),
            ]
        )

    @in_float32
    def forward(self, student_output: Tensor, teacher_output: Tensor) -> Tensor:
        """Loss over all pairs of different views; then moves the centre.

        Args:
            student_output: (num_large_crops * N, K), views one after another.
            teacher_output: (2 * N, K), views one after another; no gradient.
        """
        student = (student_output / self.student_temp).log_softmax(dim=-1)
        teacher = self.targets(teacher_output)
        loss = dino_loss_func(student.chunk(self.num_large_crops), teacher.chunk(2))
        self.update_center(teacher_output)
        return loss

    @property
    def teacher_temp(self) -> float:
        """The teacher's temperature in this epoch."""
        return float(self.teacher_temp_schedule[self.epoch])

    @torch.no_grad()
    def targets(self, teacher_output: Tensor) -> Tensor:
        """The teacher's outputs (M, K) as probabilities, centred and sharpened."""
        if self.sinkhorn_iters:
            samples = concat_all_gather_no_grad(
                torch.tensor([len(teacher_output)], device=teacher_output.device)
            )
            balance = SinkhornKnopp(self.sinkhorn_iters, self.teacher_temp)
            return balance(teacher_output, samples.sum())
        return F.softmax((teacher_output - self.center) / self.teacher_temp, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        """Move the centre towards the mean output over all processes (equation 4).

        Args:
            teacher_output: (M, K).
        """
        self.center = moved_center(self.center, teacher_output, self.center_momentum)
