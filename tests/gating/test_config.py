# SPDX-License-Identifier: MIT
"""The `gating:` section: names, types, contradictions, Hydra."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import sparse_ext
from solo.errors import ConfigError
from sparse_ext.config import reading
from sparse_ext.extension import register
from sparse_ext.gating.config.channel import VICRegDualConfig, VICRegGatingConfig
from sparse_ext.gating.config.sections import build
from tests.gating.helpers import method

pytestmark = pytest.mark.unit


def test_the_papers_defaults():
    dual = build("vicreg_dual")
    assert type(dual) is VICRegDualConfig
    assert (dual.lamb, dual.temperature, dual.reduction) == (5.0, 2 / 3, 4)
    assert (dual.gamma, dual.alpha) == (1.0, 0.02)
    assert (dual.separate_bn, dual.warmup_gate, dual.warmup_epochs) == (True, False, 10)
    assert (dual.include_stem, dual.sync_flops, dual.gate_bias_init) == (True, False, None)
    assert (dual.encoders, dual.eval) == (1, "gated")
    assert type(build("vicreg_gating")) is VICRegGatingConfig
    assert build(reading.to_dict(dual)) == dual


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("vicreg_duel", r"gating\.name='vicreg_duel' is unknown. Did you mean 'vicreg_dual'"),
        ({"budget": 0.3}, r"gating\.name is missing. Valid names: .*vicreg_dual"),
        (3, "expected a method's name"),
        ({"name": "vicreg_dual", "buget": 0.3}, r"Unknown key gating\.buget.*'budget'"),
        ({"name": "vicreg_dual", "budget": "a"}, r"gating\.budget='a' has the wrong type"),
        ({"name": "vicreg_dual", "budget": 30}, "between 0 and 1"),
        ({"name": "vicreg_dual", "budget": 0}, "between 0 and 1"),
        ({"name": "vicreg_dual", "lamb": -1}, r"gating\.lamb=-1.0 must not be negative"),
        ({"name": "vicreg_dual", "temperature": 0}, "must be positive"),
        ({"name": "vicreg_dual", "reduction": 0}, "at least 1"),
        ({"name": "vicreg_dual", "encoders": 3}, "must be 1 or 2"),
        ({"name": "vicreg_dual", "warmup_epochs": -1}, "must not be negative"),
        ({"name": "vicreg_dual", "eval": "dence"}, r"gating\.eval.*Did you mean 'dense'"),
        ({"name": "vicreg_gating", "eval": "dense"}, r"gating\.eval.*Valid names: gated"),
        ({"name": "vicreg_gating", "encoders": 2}, r"Unknown key gating\.encoders"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(ConfigError, match=message):
        build(section)


def test_the_group_exists_behind_any_yaml(tmp_path):
    (tmp_path / "plain.yaml").write_text("name: never-heard-of-it\n")
    register()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        cfg = compose("plain", ["+gating=vicreg_dual", "gating.budget=0.4"])
    assert build(reading.plain(cfg.gating)).budget == 0.4


def test_enable_completes_the_section():
    cfg = OmegaConf.create({"gating": "vicreg_dual"})
    OmegaConf.set_struct(cfg, True)
    first = OmegaConf.to_container(sparse_ext.enable(cfg))
    assert first["gating"]["budget"] == 0.3
    assert OmegaConf.to_container(sparse_ext.enable(cfg)) == first


@pytest.mark.parametrize("asked", [{"coupled": True}, {"slim_at": 0.5}])
def test_gates_do_not_follow_channels_that_are_removed(asked):
    (key,) = asked
    cfg = OmegaConf.create({"gating": "cdg", "sparse": {"name": "gmp", **asked}})
    with pytest.raises(ConfigError, match=rf"sparse\.{key} removes whole channels.*gating=cdg"):
        sparse_ext.enable(cfg)
    for sparse in ("gmp", {"name": "gmp", "coupled": False, "slim_at": None}):
        cfg = OmegaConf.create({"gating": "cdg", "sparse": sparse})
        assert sparse_ext.enable(cfg).gating.name == "cdg"


def test_evaluations_need_only_the_branch():
    cfg = OmegaConf.create({"pretrained_feature_extractor": "x", "gating": {"eval": "dense"}})
    assert sparse_ext.enable(cfg).gating == {"eval": "dense"}
    for wrong in ({"budget": 0.3}, {"eval": "dense", "budget": 0.3}, {"eval": None}):
        with pytest.raises(ConfigError, match=r"an evaluation needs only gating\.eval"):
            sparse_ext.enable(
                OmegaConf.create({"pretrained_feature_extractor": "x", "gating": wrong})
            )
    with pytest.raises(ConfigError, match=r"gating\.name is missing"):
        sparse_ext.enable(OmegaConf.create({"gating": {"eval": "dense"}}))


def test_a_budget_under_the_floor_is_refused_before_training():
    sizes = {"augmentations": [{"crop_size": 32, "num_crops": 2}]}
    width = {"backbone": {"name": "resnet18", "kwargs": {"width": 64}}}
    with pytest.raises(ConfigError, match=r"gating\.budget=0\.014.*takes 0\.0150 of"):
        method("vicreg", {"name": "vicreg_dual", "budget": 0.014}, **sizes, **width)
    method("vicreg", {"name": "vicreg_dual", "budget": 0.016}, **sizes, **width)


def test_backbones_without_residual_blocks():
    vit = {"name": "vit_tiny", "kwargs": {"img_size": 32}}
    changes = {"backbone": vit}
    from solo.backbones import build_encoder
    from tests.methods.helpers import tiny_cfg

    cfg = tiny_cfg("vicreg")
    cfg.update(changes)
    cfg.gating = "vicreg_dual"
    sparse_ext.enable(cfg)
    with pytest.raises(ConfigError, match=r"VisionTransformer has none.*resnet18"):
        build_encoder(cfg)


def test_masks_with_two_encoders():
    section = {"name": "vicreg_dual", "encoders": 2}
    with pytest.raises(ConfigError, match=r"sparse and gating=vicreg_dual.*gating\.encoders=1"):
        sparse_ext.enable(OmegaConf.create({"gating": section, "sparse": "gmp"}))


def test_no_torch():
    code = (
        "import sys, sparse_ext.extension as e, sparse_ext.gating.config; e.register(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
