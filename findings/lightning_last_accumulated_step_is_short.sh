#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  lightning 2.6.6, torch 2.14.1.
# Guess:     with accumulate_grad_batches=4 every optimizer step sees the mean gradient of its
#            batches, also the last step of an epoch, which has fewer.
# Behaviour: every loss is divided by 4 before the backward pass. An epoch of 6 batches makes a
#            step of 4 and one of 2, and the second has half of the mean gradient: the last step of
#            each epoch is too short with SGD or LARS, and clipping and any threshold on gradient
#            norms see a smaller number.
# Seen:      a gradient that is 1 for every batch: steps of 1.0 and 0.5.
exec "$(dirname "$0")/run_with" lightning==2.6.6 torch==2.14.1 numpy==2.4.6 <<'PYTHON'
import logging

import lightning
import torch

from expect import expect

for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
print(f"lightning {lightning.__version__}")


class Slope(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.gradients = []

    def training_step(self, batch, index):
        return 1.0 * self.weight

    def on_before_optimizer_step(self, optimizer):
        self.gradients.append(self.weight.grad.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


module = Slope()
trainer = lightning.Trainer(
    max_epochs=1,
    accumulate_grad_batches=4,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(6, 1)))
expect(f"6 batches, 4 to a step: gradients {module.gradients}", module.gradients == [1.0, 0.5])
PYTHON
