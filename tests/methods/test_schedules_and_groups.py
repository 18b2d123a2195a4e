# SPDX-License-Identifier: MIT
"""Weight decay, momentum and learning rates per layer, as ViT methods schedule them."""

import math

import lightning.pytorch as pl
import pytest

from solo.errors import ConfigError
from solo.methods import METHODS
from tests.methods.helpers import tiny_cfg, tiny_trainer
from tests.methods.vit_models import batch_of, build, loaders

pytestmark = pytest.mark.unit


class Decays(pl.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append([group["weight_decay"] for group in optimizer.param_groups])


def test_weight_decay_follows_a_cosine_and_groups_without_decay_keep_none():
    model = build(
        "dino",
        optimizer__weight_decay=0.04,
        optimizer__final_weight_decay=0.4,
        optimizer__exclude_bias_n_norm_wd=True,
    )
    seen = Decays()
    tiny_trainer(max_epochs=2, callbacks=[seen]).fit(model, *loaders(batch_of(n=8)))
    assert len(seen.seen) == 4
    names = [group["name"] for group in model.optimizers().param_groups]
    for step, decays in enumerate(seen.seen):
        expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 4))
        for name, decay in zip(names, decays, strict=True):
            fixed = name.endswith("_no_decay") or name == "classifier"
            assert decay == pytest.approx(0.0 if fixed else expected)


def test_without_a_final_weight_decay_nothing_moves():
    seen = Decays()
    model = build("dino")
    tiny_trainer(max_epochs=2, callbacks=[seen]).fit(model, *loaders(batch_of(n=8)))
    assert seen.seen == [[1e-4, 0, 1e-4]] * 4


def test_layers_learn_at_their_own_rates():
    model = build(
        "dinov2",
        optimizer__name="adamw",
        optimizer__lr=0.01,
        optimizer__layer_decay=0.9,
        optimizer__patch_embed_lr=0.2,
    )
    groups = model.configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    vit = model.backbone
    # embeddings, first block, last block with the norm: the top one is unscaled
    assert rates[id(vit.norm.weight)] == pytest.approx(0.01)
    assert rates[id(vit.blocks[1].mlp.fc1.weight)] == pytest.approx(0.01)
    assert rates[id(vit.blocks[0].attn.qkv.weight)] == pytest.approx(0.01 * 0.9)
    assert rates[id(vit.pos_embed)] == pytest.approx(0.01 * 0.9**2)
    assert rates[id(vit.patch_embed.proj.weight)] == pytest.approx(0.01 * 0.9**2 * 0.2)
    assert rates[id(model.head.mlp[0].weight)] == pytest.approx(0.01)
    trained = [id(p) for group in model.learnable_params for p in group["params"]]
    assert len(trained) == len(set(trained))
    assert {id(p) for p in model.backbone.parameters()} <= set(trained)
    names = [group["name"] for group in model.learnable_params]
    assert len(names) == len(set(names))


def test_stages_of_a_resnet_learn_at_their_own_rates():
    kwargs = {"proj_hidden_dim": 8, "proj_output_dim": 6, "temperature": 0.2}
    model = METHODS["simclr"](tiny_cfg("simclr", kwargs, optimizer__layer_decay=0.5))
    groups = model.configure_optimizers().param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    net, top = model.backbone, rates[id(model.backbone.layer4[1].conv2.weight)]
    stages = [net.conv1, net.bn1, *(getattr(net, f"layer{i}")[0].conv1 for i in range(1, 5))]
    assert [rates[id(m.weight)] / top for m in stages] == [2.0**-n for n in range(5, -1, -1)]
    assert rates[id(model.projector[0].weight)] == top


def test_a_linear_momentum_schedule():
    taus = []

    class Taus(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            taus.append(module.momentum_updater.cur_tau)

    model = build("dino", momentum__base_tau=0.6, momentum__schedule="linear")
    tiny_trainer(max_epochs=2, callbacks=[Taus()]).fit(model, *loaders(batch_of(n=8)))
    assert taus == pytest.approx([0.6, 0.7, 0.8, 0.9])
    with pytest.raises(ConfigError, match=r"momentum.schedule='linnear'.*'linear'"):
        build("dino", momentum__schedule="linnear")
