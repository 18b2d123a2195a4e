# SPDX-License-Identifier: MIT
"""The figures of docs/peers.md: one fixed input per subject, through every implementation of it.

    python3 -m venv peers
    peers/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 lightly==1.6.0 \
        stable-pretraining==0.1.8
    peers/bin/pip install --no-deps solo-learn==1.0.2
    peers/bin/python benchmarks/peers.py                    # the peers'
    PYTHONPATH=. python3 benchmarks/peers.py --ours         # ours, in the project's environment

The two runs are apart because solo-learn's package is called `solo`, like ours. Its old
dependencies are not needed: its files are loaded one by one.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from importlib.metadata import distribution
from types import SimpleNamespace
from typing import Any

import torch
from peers_input import (
    LABELS,
    NEIGHBOURS,
    TEST,
    alive,
    centred_loss,
    contrast,
    images_and_views,
    lars_steps,
    running_mean,
    views,
)
from torch import Tensor, nn
from torch.nn import functional as F


def solo_learn() -> dict[str, Any]:
    """Files of the installed solo-learn, one by one, as its package needs old dependencies."""

    def module(path: str) -> Any:
        file = distribution("solo-learn").locate_file(f"solo/{path}.py")
        spec = importlib.util.spec_from_file_location(path.replace("/", "_"), file)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded

    def accuracy(train: Tensor, labels: Tensor) -> float:  # two of three tests are of class 0
        tests = {"test_features": [TEST.repeat(3, 1)], "test_targets": [torch.tensor([0, 0, 1])]}
        options = {"k": len(train), "T": 0.07, "distance_fx": "cosine", "epsilon": 1e-5}
        state = SimpleNamespace(
            train_features=[train],
            train_targets=[labels],
            **tests,
            **options,
            max_distance_matrix_size=10**6,
            reset=lambda: None,
        )
        return module("utils/knn").WeightedKNNClassifier.compute(state)[0]

    lars, updater = module("utils/lars").LARSWrapper, module("utils/momentum").MomentumUpdater
    return {
        **_solo(module),
        "SupCon": module("losses/simclr").simclr_loss_func(
            *views(), 0.5, (LABELS[:, None] == LABELS) & ~torch.eye(16, dtype=torch.bool)
        ),
        "MoCo": module("losses/moco").moco_loss_func(*contrast()[:2], contrast()[2].T, 0.2),
        "kNN": {name: int(accuracy(*data) < 50) for name, data in NEIGHBOURS.items()},
        "LARS": lars_steps(
            lambda w, decay: lars(
                torch.optim.SGD([w], lr=1.0, weight_decay=decay), exclude_bias_n_norm=True
            )
        ),
        "momentum, batch norm": running_mean(updater(0.9).update),
    }


def _solo(module: Callable[[str], Any]) -> dict[str, Any]:
    """What solo-learn and this project compute through the same names."""
    vicreg, both = module("losses/vicreg"), torch.cat(views())
    scores = [F.normalize(z, dim=1) for z in views()]
    codes = [module("utils/sinkhorn_knopp").SinkhornKnopp()(s) for s in scores]
    dino = module("losses/dino").DINOLoss(4, 0.07, 0.07, 0, 1)
    updater, taus = module("utils/momentum").MomentumUpdater(0.9), []
    for step in (5, 9):
        updater.update_tau(step, 10)
        taus.append(updater.cur_tau)
    return {
        "VICReg": {
            "variance": vicreg.variance_loss(*views()),
            "invariance": vicreg.invariance_loss(*views()),
        },
        "Barlow Twins": module("losses/barlow").barlow_loss_func(*views(), scale_loss=1.0),
        "SwAV": module("losses/swav").swav_loss_func(scores, codes),
        "DINO": centred_loss(dino, lambda: dino(both, both)),
        "momentum, schedule": {"step 5 of 10": taus[0], "step 9 of 10": taus[1]},
    }


def lightly() -> dict[str, Any]:
    from lightly import loss
    from lightly.loss.lejepa_loss import SIGReg
    from lightly.models.utils import update_momentum
    from lightly.utils.benchmarking import knn_predict
    from lightly.utils.lars import LARS
    from lightly.utils.scheduler import cosine_schedule

    query, key, queue = contrast()
    moco = loss.NTXentLoss(temperature=0.2, memory_bank_size=(8, 4))
    moco.memory_bank.bank = queue.clone()
    dino = loss.DINOLoss(4, teacher_temp=0.07)
    scores, stacked = [F.normalize(z, dim=1) for z in views()], torch.stack(views())[:, :, :1]
    lejepa = loss.LeJEPALoss(lambda_param=0.05)
    return {
        "VICReg": {
            "variance": loss.VICRegLoss(0, 1, 0)(*views()),
            "invariance": loss.VICRegLoss(1, 0, 0)(*views()),
        },
        "Barlow Twins": loss.BarlowTwinsLoss()(*views()),
        "SwAV": loss.SwaVLoss()(scores, []),
        "DINO": centred_loss(dino, lambda: dino(list(views()), list(views()))),
        "MoCo": moco(query, key),
        "kNN": {
            name: int(knn_predict(TEST, train.T, labels, 2, len(train), 0.1)[0, 0])
            for name, (train, labels) in NEIGHBOURS.items()
        },
        "LARS": lars_steps(lambda w, decay: LARS([w], lr=1.0, weight_decay=decay)),
        "momentum, batch norm": running_mean(lambda o, m: update_momentum(o, m, 0.9)),
        "momentum, schedule": {
            f"step {step} of 10": cosine_schedule(step, 10, 0.9, 1.0) for step in (5, 9)
        },
        "LeJEPA": {
            "SIGReg": SIGReg()(stacked),
            "loss": lejepa(local_proj=stacked[1:], global_proj=stacked[:1]),
        },
    }


def stable_pretraining() -> dict[str, Any]:
    from stable_pretraining import losses
    from stable_pretraining.backbone.utils import TeacherStudentWrapper
    from stable_pretraining.callbacks.knn import OnlineKNN
    from stable_pretraining.callbacks.lidar import LiDAR
    from stable_pretraining.callbacks.queues import UnsortedQueue
    from stable_pretraining.callbacks.rankme import RankMe
    from stable_pretraining.methods.lejepa import LeJEPA, SlicedEppsPulley
    from stable_pretraining.methods.mocov2 import MoCov2
    from stable_pretraining.optim.lars import LARS

    def moco() -> Tensor:
        query, key, queue = contrast()
        method = MoCov2.__new__(MoCov2)
        nn.Module.__init__(method)
        method.backbone = method.projector = TeacherStudentWrapper(nn.Identity())
        method.temperature, method.queue = 0.2, UnsortedQueue(8, 4)
        method.queue.append(queue)
        return method(query, key).loss

    def dino() -> Tensor:
        outputs = torch.stack(views())
        teacher = dino_loss.softmax_center_teacher(outputs, 0.07)
        dino_loss.update_center(outputs)
        value = dino_loss(outputs, teacher)
        dino_loss.apply_center_update()
        return value

    def vote(train: Tensor, labels: Tensor) -> int:
        knn = OnlineKNN("knn", "x", "y", 8, {}, num_classes=2, k=len(train))
        return int(knn._compute_knn_predictions(TEST, train, labels).argmax())

    def rank(features: Tensor) -> float:
        callback, logged = RankMe("rank", "x", 8, 4), {}
        callback._target_queue = SimpleNamespace(data=features)
        module = SimpleNamespace(log=logged.__setitem__)
        callback.on_validation_batch_end(SimpleNamespace(global_rank=0), module, {}, {}, 0)
        return logged["rank"]

    def spread(queue: Tensor) -> float:
        callback = LiDAR("lidar", "x", 8, 4, n_classes=4, samples_per_class=2)
        return callback._compute_lidar(queue)["lidar"]

    def teacher(online: nn.Module, momentum: nn.Module) -> nn.Module:
        pair = TeacherStudentWrapper(online, base_ema_coefficient=0.9)
        pair.teacher.load_state_dict(momentum.state_dict())
        pair.update_teacher()
        return pair.teacher

    def schedule(step: int) -> float:
        pair = TeacherStudentWrapper(nn.Identity(), base_ema_coefficient=0.9)
        pair.update_ema_coefficient(step, 10)
        return pair.ema_coefficient.item()

    dino_loss, prototypes = losses.DINOv1Loss(), nn.Linear(4, 4, bias=False)
    prototypes.weight.data = torch.eye(4)
    stacked = torch.stack(views())[:, :, :1]
    sigreg = SlicedEppsPulley()
    return {
        "VICReg": {
            "variance": losses.VICRegLoss(0, 1, 0)(*views()),
            "invariance": losses.VICRegLoss(1, 0, 0)(*views()),
        },
        "Barlow Twins": losses.BarlowTwinsLoss()(*views()),
        "SwAV": losses.SwAVLoss()(*views(), prototypes),
        "DINO": centred_loss(dino_loss, dino),
        "MoCo": moco(),
        "kNN": {name: vote(*data) for name, data in NEIGHBOURS.items()},
        "LARS": lars_steps(
            lambda w, decay: LARS([w], lr=1.0, weight_decay=decay, exclude_bias_n_norm=True)
        ),
        "momentum, batch norm": running_mean(teacher),
        "momentum, schedule": {f"step {step} of 10": schedule(step) for step in (5, 9)},
        "LeJEPA": {
            "SIGReg": sigreg(stacked.reshape(-1, 1)),
            "loss": LeJEPA._compute_loss(stacked, 1, sigreg, 0.05)[0],
        },
        "RankMe": {"8 x 4": rank(views()[0]), "32 of 1,024": rank(alive())},
        "LiDAR": {
            "image by image": spread(images_and_views().flatten(0, 1)),
            "view by view": spread(images_and_views().transpose(0, 1).flatten(0, 1)),
        },
    }


def timm() -> dict[str, Any]:
    from timm.optim import Lars
    from timm.utils import ModelEmaV3

    def average(online: nn.Module, momentum: nn.Module) -> nn.Module:
        ema = ModelEmaV3(momentum, decay=0.9)
        ema.update(online)
        return ema.module

    return {
        "LARS": lars_steps(lambda w, decay: Lars([w], lr=1.0, weight_decay=decay)),
        "momentum, batch norm": running_mean(average),
    }


def ours() -> dict[str, Any]:
    from importlib import import_module

    from solo.losses.lejepa import lejepa_loss_func, sigreg
    from solo.losses.mocov2plus import mocov2plus_loss_func
    from solo.losses.simclr import simclr_loss_func
    from solo.quality import lidar, rankme
    from solo.utils.knn import WeightedKNNClassifier
    from solo.utils.lars import LARS
    from solo.utils.momentum import MomentumUpdater

    def vote(train: Tensor, labels: Tensor) -> int:  # two of three tests are of class 0
        metric = WeightedKNNClassifier(k=len(train))
        metric.update(train, labels, TEST.repeat(3, 1), torch.tensor([0, 0, 1]))
        return int(metric.compute()[0] < 50)

    query, key, queue = contrast()
    stacked = torch.stack(views())[:, :, :1]
    return {
        **_solo(lambda path: import_module(f"solo.{path.replace('/', '.')}")),
        "SupCon": simclr_loss_func(torch.cat(views()), LABELS, 0.5),
        "MoCo": mocov2plus_loss_func(query, key, queue.T, 0.2),
        "kNN": {name: vote(*data) for name, data in NEIGHBOURS.items()},
        "LARS": lars_steps(
            lambda w, decay: LARS([w], lr=1.0, weight_decay=decay, exclude_bias_n_norm=True)
        ),
        "momentum, batch norm": running_mean(MomentumUpdater(0.9).update),
        "LeJEPA": {
            "SIGReg": torch.stack([sigreg(z, torch.ones(1, 1)) for z in stacked]).mean(),
            "loss": lejepa_loss_func(stacked[:1], stacked[1:], 0.05, torch.ones(1, 1)),
            "SIGReg, pool_views": sigreg(stacked.flatten(0, 1), torch.ones(1, 1)),
        },
        "RankMe": {"8 x 4": rankme(views()[0]), "32 of 1,024": rankme(alive())},
        "LiDAR": lidar(images_and_views()),
    }


def papers() -> dict[str, Any]:
    """The formulas of the papers (LARS: of the code behind Barlow Twins and VICReg), by hand."""
    one, other = views()
    spread = [(1 - (z.var(0) + 1e-4).sqrt()).clamp(min=0).mean() for z in (one, other)]
    unit = [(z - z.mean(0)) / z.std(0) for z in (one, other)]
    correlation = unit[0].T @ unit[1] / len(one)
    diagonal = (correlation.diagonal() - 1).square().sum()
    energy = correlation.square().sum() - correlation.diagonal().square().sum()

    z = F.normalize(torch.cat(views()), dim=1)
    own = torch.eye(16, dtype=torch.bool)
    log_p = (z @ z.T / 0.5).masked_fill(own, -torch.inf).log_softmax(1)
    positive = (LABELS[:, None] == LABELS) & ~own
    supcon = -(log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1)).mean()

    def rank(features: Tensor) -> Tensor:
        s = torch.linalg.svdvals(features)
        p = s / s.sum() + 1e-7
        return (-(p * p.log()).sum()).exp()

    class Lars(torch.optim.SGD):  # decay first, then eta ||p|| / ||step||; 1-d tensors neither
        def step(self) -> None:
            weight, decay = self.param_groups[0]["params"][0], self.defaults["weight_decay"]
            step = weight.grad
            if weight.ndim > 1:
                step = step + decay * weight
                step = step * 1e-3 * weight.norm() / step.norm()
            weight.data -= step

    return {
        "VICReg": {"variance": sum(spread), "invariance": (one - other).square().sum(1).mean()},
        "Barlow Twins": diagonal + 5e-3 * energy,
        "SupCon": supcon,
        "LARS": lars_steps(lambda w, decay: Lars([w], lr=1.0, weight_decay=decay)),
        "RankMe": {"8 x 4": rank(one), "32 of 1,024": rank(alive())},
    }


def number(value: Any) -> str:
    """A figure as the table prints it."""
    value = float(value)
    return str(int(value)) if value == int(value) else f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--ours", action="store_true", help="this project's figures")
    for implementation in (ours,) if parser.parse_args().ours else PEERS:
        for subject, figures in implementation().items():
            parts = figures if isinstance(figures, dict) else {"": figures}
            text = ", ".join(f"{name} {number(value)}".strip() for name, value in parts.items())
            print(f"{implementation.__name__:20} {subject:22} {text}")


PEERS = (solo_learn, lightly, stable_pretraining, timm, papers)

if __name__ == "__main__":
    main()
