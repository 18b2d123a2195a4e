# SPDX-License-Identifier: MIT
"""DINO (Caron et al. 2021, algorithm 1): self-distillation with centring and sharpening."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from solo.losses.precision import in_float32


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
    ):
        super().__init__()
        self.epoch = 0
        self.student_temp = student_temp
        self.num_large_crops = num_large_crops
        self.center_momentum = center_momentum
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
        temperature = float(self.teacher_temp_schedule[self.epoch])
        teacher = F.softmax((teacher_output.detach() - self.center) / temperature, dim=-1)
        losses = [
            -(q * p).sum(dim=-1).mean()
            for i, q in enumerate(teacher.chunk(2))
            for j, p in enumerate(student.chunk(self.num_large_crops))
            if i != j
        ]
        self.update_center(teacher_output)
        return torch.stack(losses).mean()

    @torch.no_grad()
    def update_center(self, teacher_output: Tensor) -> None:
        """Move the centre towards the mean output over all processes (equation 4).

        Args:
            teacher_output: (M, K).
        """
        total = teacher_output.sum(dim=0, keepdim=True)
        count = len(teacher_output)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            count *= dist.get_world_size()
        momentum = self.center_momentum
        self.center = self.center * momentum + total / count * (1 - momentum)
