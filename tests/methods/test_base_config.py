# SPDX-License-Identifier: MIT
"""BaseMethod: configuration, defaults, what is refused."""

import pytest
import torch
from omegaconf import OmegaConf

from solo.errors import ConfigError
from solo.methods import METHODS, BaseMethod, SimCLR, SimSiam
from tests.methods.helpers import tiny_cfg

pytestmark = pytest.mark.unit

SIMCLR = {"proj_hidden_dim": 8, "proj_output_dim": 6, "temperature": 0.2}
SIMSIAM = {"proj_hidden_dim": 8, "proj_output_dim": 6, "pred_hidden_dim": 5}


def test_defaults_and_idempotence():
    cfg = tiny_cfg("base")
    model = BaseMethod(cfg)
    once = OmegaConf.to_container(cfg)
    assert model.add_and_assert_specific_cfg(cfg) is cfg
    assert OmegaConf.to_container(cfg) == once
    assert once["scheduler"] == {
        "name": "none",
        "lr_decay_steps": None,
        "min_lr": 0.0,
        "warmup_start_lr": 3e-5,
        "warmup_epochs": 10,
        "interval": "step",
    }
    assert once["optimizer"]["kwargs"] == {}
    assert once["optimizer"]["exclude_bias_n_norm_wd"] is False
    assert once["knn_eval"] == {"enabled": False, "k": 20, "distance_func": "euclidean"}
    assert once["performance"] == {"disable_channel_last": False}
    assert once["accumulate_grad_batches"] == 1


def test_attributes():
    model = BaseMethod(tiny_cfg("base", accumulate_grad_batches=3, scheduler__min_lr=0.01))
    assert model.lr == pytest.approx(0.3)
    assert model.classifier_lr == pytest.approx(0.6)
    assert model.min_lr == pytest.approx(0.03)
    assert model.warmup_start_lr == pytest.approx(9e-5)
    assert model.features_dim == model.classifier.in_features == 32
    assert (model.num_crops, model.multicrop) == (2, False)
    assert model.backbone_name == "resnet18"
    assert model.validation_step_outputs == []
    assert "resnet18" in BaseMethod._BACKBONES


@pytest.mark.parametrize(
    "key", ["method", "max_epochs", "data.num_classes", "optimizer.classifier_lr"]
)
def test_missing_keys_are_named(key):
    cfg = tiny_cfg("base")
    OmegaConf.update(cfg, key, "???")
    with pytest.raises(AssertionError, match=f"{key} is missing"):
        BaseMethod(cfg)


def test_unknown_method_kwarg_names_the_nearest():
    with pytest.raises(ConfigError, match=r"method_kwargs\.temprature.*'temperature'"):
        SimCLR(tiny_cfg("simclr", {**SIMCLR, "temprature": 1}))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temperature", None, "temperature is missing: simclr needs a value of type float"),
        ("temperature", "cold", "temperature is 'cold'"),
        ("proj_hidden_dim", 2.5, "proj_hidden_dim is 2.5"),
        ("proj_hidden_dim", True, "proj_hidden_dim is True"),
    ],
)
def test_method_kwargs_of_the_wrong_type(name, value, text):
    with pytest.raises(ConfigError, match=text):
        SimCLR(tiny_cfg("simclr", {**SIMCLR, name: value}))


def test_kwargs_without_effect_get_one_warning():
    with pytest.warns(UserWarning, match=r"method_kwargs\.temperature has no effect on simsiam"):
        SimSiam(tiny_cfg("simsiam", {**SIMSIAM, "temperature": 0.2}))


def test_integers_pass_as_floats():
    assert SimCLR(tiny_cfg("simclr", {**SIMCLR, "temperature": 1})).temperature == 1


def test_a_method_written_for_solo_learn_works():
    class Mine(BaseMethod):
        def __init__(self, cfg):
            super().__init__(cfg)
            self.projector = torch.nn.Linear(self.features_dim, cfg.method_kwargs.width)

        @staticmethod
        def add_and_assert_specific_cfg(cfg):
            cfg = super(Mine, Mine).add_and_assert_specific_cfg(cfg)
            assert not OmegaConf.is_missing(cfg, "method_kwargs.width")
            return cfg

        @property
        def learnable_params(self):
            extra = [{"name": "projector", "params": self.projector.parameters()}]
            return super().learnable_params + extra

    model = Mine(tiny_cfg("mine", {"width": 3}))
    names = [group["name"] for group in model.configure_optimizers().param_groups]
    assert names == ["backbone", "classifier", "projector"]


def test_registry():
    assert METHODS["base"] is BaseMethod
    assert {"linear", "simclr", "simsiam", "byol", "mocov2plus", "mocov3"} <= set(METHODS)
    assert {"barlow_twins", "vicreg"} <= set(METHODS)
