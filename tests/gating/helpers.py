# SPDX-License-Identifier: MIT
"""Small gated encoders and methods."""

import torch
from lightning.pytorch import Callback
from omegaconf import OmegaConf

from solo.backbones import build_encoder
from solo.methods import METHODS
from solo.monitoring.guards import EpochSeeder
from sparse_ext import enable
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import gating_of, patch
from tests.methods.helpers import tiny_cfg, tiny_loaders, tiny_trainer

KWARGS = {
    "vicreg": {"proj_hidden_dim": 16, "proj_output_dim": 8},
    "barlow_twins": {"proj_hidden_dim": 16, "proj_output_dim": 8},
    "simclr": {"proj_hidden_dim": 16, "proj_output_dim": 8, "temperature": 0.2},
    "byol": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 16},
}
OTHERS = {
    "simsiam": {"proj_hidden_dim": 16, "proj_output_dim": 8, "pred_hidden_dim": 8},
    "mocov2plus": {
        "proj_hidden_dim": 16,
        "proj_output_dim": 8,
        "temperature": 0.2,
        "queue_size": 16,
    },
}


def plain_encoder(name="resnet18", width=4, dataset="cifar10"):
    backbone = {"name": name, "kwargs": {"width": width}}
    return build_encoder(tiny_cfg("vicreg", backbone=backbone, data__dataset=dataset))


def gated_encoder(name="vicreg_dual", backbone="resnet18", width=4, dataset="cifar10", **section):
    config = build({"name": name, **section})
    return patch(plain_encoder(backbone, width, dataset), config)


def method(name="vicreg", gating="vicreg_dual", **changes):
    """A tiny method; `gating` is a section, a name or None."""
    cfg = tiny_cfg(
        name, dict((KWARGS | OTHERS)[name]), **{"seed": 5, "optimizer__lr": 0.01, **changes}
    )
    if gating is not None:
        cfg.gating = OmegaConf.create(gating) if isinstance(gating, dict) else gating
        enable(cfg)
    return METHODS[name](METHODS[name].add_and_assert_specific_cfg(cfg))


class Watch(Callback):
    """Branches that each optimizer step has taken: of the online, then the momentum encoder."""

    def __init__(self):
        self.branches = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        encoders = [module.backbone, getattr(module, "momentum_backbone", None)]
        tapes = [gating_of(encoder).context.tape for encoder in encoders if encoder is not None]
        self.branches.append(["".join(t[view].branch for view in sorted(t)) for t in tapes])


def train(name, gating, epochs=1, ckpt=None, loaders=None, **trainer):
    """A seeded run of two steps per epoch; returns the method and its trainer."""
    torch.manual_seed(0)
    model = method(name, gating, max_epochs=2, momentum__final_tau=0.9)
    trainer["callbacks"] = [EpochSeeder(5), *trainer.get("callbacks", [])]
    run = tiny_trainer(max_epochs=epochs, **trainer)
    run.fit(model, *(loaders or tiny_loaders(steps=2)[:1]), ckpt_path=ckpt)
    return model, run


def assert_resumes(name, gating, path):
    """Two epochs at once equal one, a checkpoint, and another, bit by bit."""
    straight, whole = train(name, gating, 2)
    loaders = tiny_loaders(steps=2)[:1]
    torch.manual_seed(0)
    first = method(name, gating, max_epochs=2, momentum__final_tau=0.9)
    half = tiny_trainer(max_epochs=2, limit_train_batches=2, callbacks=[EpochSeeder(5), Stop()])
    half.fit(first, *loaders)
    half.save_checkpoint(path)
    resumed, rest = train(name, gating, 2, ckpt=path)
    one, other = straight.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
    figures = {key for key in whole.callback_metrics if "gating/" in key}
    assert figures
    assert all(torch.equal(whole.callback_metrics[k], rest.callback_metrics[k]) for k in figures)


class Stop(Callback):
    """Ends a run after its first epoch."""

    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def assert_comes_back(backbone):
    """A plain encoder becomes `backbone` by its weights alone."""
    from sparse_ext.gating.encoder import rebuild

    twin = rebuild(plain_encoder(), backbone.state_dict())
    twin.load_state_dict(backbone.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(twin.eval()(x), backbone.eval()(x))
