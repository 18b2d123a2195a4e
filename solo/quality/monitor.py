# SPDX-License-Identifier: MIT
"""RankMe, LiDAR and alpha-ReQ in every epoch of a pretraining run, on features that it has anyway.

No image is encoded for it: the outputs of the epoch's last training steps are remembered, each
view of each image, and measured when the epoch ends. They are therefore those of augmented images,
in training mode, from weights that moved by a few steps in between.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from solo.quality.measures import alpha_req, lidar, rankme
from solo.utils.ranks import concat_all_gather_no_grad
from solo.utils.views import current_view

COLLAPSED = 1.5  # RankMe below this is near 1
FLAT = 0.01  # change of the mean loss from epoch to epoch, relative to the first epoch's


class QualityMonitor(Callback):
    """Logs `quality/<part>_{rankme,lidar,alpha_req}`, and names a run that has collapsed.

    Parts are `backbone`, `projector` (the first head that reads the features; of DINO's heads the
    bottleneck, not the prototypes), `momentum_backbone` and `momentum_projector`, those that the
    method has. `quality/samples` is the number of rows, views times images over all ranks.

    Args:
        images: number of the epoch's last images that are looked at, over all ranks.
        every: epochs between two measurements.
    """

    def __init__(self, images: int = 2048, every: int = 1):
        super().__init__()
        self.images = images
        self.every = every
        self._step: dict[tuple[str, int], Tensor] = {}
        self._kept: dict[tuple[str, int], deque[Tensor]] = defaultdict(deque)
        self._collecting = False
        self._hooks: list[Any] = []
        self._loss: list[Tensor] = []
        self._losses: list[float] = []  # mean of each epoch
        self._named = False

    # ---- what is remembered ----

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to what the method computes."""
        self._kept.clear()
        classifier = getattr(pl_module, "classifier", None)
        if classifier is None:
            return
        self._listen("backbone", classifier, of_input=True)
        names = [name for name, head in pl_module.declared_heads.items() if head.of == "feats"]
        names = [name for name in names if pl_module.declared_heads[name].output is not None][:1]
        for name in names:
            self._listen("projector", _bottleneck(getattr(pl_module, name)))
        if not hasattr(pl_module, "momentum_backbone"):
            return
        copies = [f"momentum_{name}" for name in names if hasattr(pl_module, f"momentum_{name}")]
        if not copies:
            self._listen("momentum_backbone", pl_module.momentum_backbone)
        for name in copies:  # a compiled encoder is best listened to through what reads it
            head = getattr(pl_module, name)
            self._listen("momentum_backbone", head, of_input=True)
            self._listen("momentum_projector", _bottleneck(head))

    def _listen(self, part: str, module: nn.Module, of_input: bool = False) -> None:
        def remember(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            view = current_view()
            if self._collecting and view is not None:
                self._step[part, view.index] = (inputs[0] if of_input else output).detach()

        self._hooks.append(module.register_forward_hook(remember))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the last steps of an epoch only; where their number is unknown, at all."""
        self._step.clear()
        self._collecting = self._due(trainer) and (
            trainer.num_training_batches - batch_idx <= self._steps(pl_module, trainer)
        )

    def _due(self, trainer: Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.every == 0

    def _steps(self, module: LightningModule, trainer: Trainer) -> float:
        if math.isinf(trainer.num_training_batches):
            return math.inf
        return math.ceil(self.images / (module.batch_size * trainer.world_size))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep what this step has computed of its large crops, and its loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._loss.append(loss.detach())
        if not self._collecting:
            return
        most = math.ceil(self.images / (pl_module.batch_size * trainer.world_size))
        for (part, view), output in self._step.items():
            if view < pl_module.num_large_crops and output.dim() == 2:
                kept = self._kept[part, view]
                kept.append(output)
                if len(kept) > most:
                    kept.popleft()
        self._step.clear()
        self._collecting = False

    # ---- what is measured ----

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log; all ranks compute the same."""
        figures = self._measure() if self._due(trainer) else {}
        self._kept.clear()
        if figures:
            pl_module.log_dict({f"quality/{name}": value for name, value in figures.items()})
        if self._loss:
            mean = concat_all_gather_no_grad(
                torch.stack([x.to(self._loss[-1].device) for x in self._loss]).mean()[None]
            ).mean()
            self._losses.append(float(mean))
            self._loss = []
        self._name_collapse(trainer, figures)

    def _measure(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        for part in dict.fromkeys(name for name, _ in self._kept):
            views = [
                torch.cat([x.to(kept[-1].device) for x in kept])
                for (name, _), kept in self._kept.items()
                if name == part
            ]
            if len({len(view) for view in views}) != 1:
                continue
            features = concat_all_gather_no_grad(torch.stack(views, dim=1).float())
            rows = features.flatten(0, 1)
            figures["samples"] = float(len(rows))
            figures[f"{part}_rankme"] = float(rankme(rows))
            figures[f"{part}_alpha_req"] = float(alpha_req(rows))
            if features.shape[1] > 1 and len(features) > 1:
                figures[f"{part}_lidar"] = float(lidar(features))
        return figures

    def _name_collapse(self, trainer: Trainer, figures: dict[str, float]) -> None:
        ranks = {
            part: figures.get(f"{part}_rankme", math.inf) for part in ("backbone", "projector")
        }
        part = min(ranks, key=ranks.get)  # type: ignore[arg-type]
        if self._named or ranks[part] >= COLLAPSED or not self._flat():
            return
        self._named = True
        if trainer.is_global_zero:
            print(
                f"COLLAPSED: after epoch {trainer.current_epoch + 1} RankMe of the {part} is "
                f"{ranks[part]:.2f}, so all images get nearly the same features, and the loss "
                f"stays at {self._losses[-1]:.4g}. Lower optimizer.lr, or look at the weight of "
                "the term that keeps features apart (variance, temperature, centring).",
                flush=True,
            )

    def _flat(self) -> bool:
        """Whether the last epoch's mean loss is that of the epoch before."""
        if len(self._losses) < 2:
            return False
        scale = max(abs(self._losses[0]), abs(self._losses[-1]))
        return abs(self._losses[-1] - self._losses[-2]) <= FLAT * scale

    # ---- the end ----

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the method's modules again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def epoch_state(self) -> dict[str, Any]:
        """What this epoch has gathered so far, for a run that is stopped within it."""
        kept = [[*key, [x.cpu() for x in outputs]] for key, outputs in self._kept.items()]
        return {"kept": kept, "loss": [loss.cpu() for loss in self._loss]}

    def restore_epoch(self, state: dict[str, Any]) -> None:
        """Go on gathering from what `epoch_state` has returned."""
        self._kept.update({(part, view): deque(x) for part, view, x in state["kept"]})
        self._loss = list(state["loss"])

    def state_dict(self) -> dict[str, Any]:
        """The epochs' losses, which a resumed run goes on comparing."""
        return {"losses": list(self._losses), "named": self._named}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the losses of the epochs before."""
        self._losses, self._named = list(state_dict["losses"]), state_dict["named"]


def _bottleneck(head: nn.Module) -> nn.Module:
    """Of a head that ends in prototypes: the projection that they are compared with."""
    return getattr(head, "mlp", head)
