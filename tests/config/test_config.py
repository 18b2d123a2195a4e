# SPDX-License-Identifier: MIT
"""The schema of `sparse:`, its errors, and its Hydra groups."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import sparse_ext
from solo.errors import ConfigError
from sparse_ext.config.sections import SyncCPConfig, build, to_dict
from sparse_ext.extension import register

pytestmark = pytest.mark.unit


def test_defaults_are_the_papers():
    config = build("synccp")
    assert (config.initial, config.final, config.momentum) == (0.3, 0.8, (0.0, 0.5))
    assert (config.gap, config.sparser, config.csi.mode) == (0.3, "online", "normalized")
    assert (config.csi.kappa, config.csi.patience, config.csi.deadline) == (0.02, 2, 0.30)
    assert (config.score_momentum, config.drop_start, config.drop_end) == (0.9, 0.5, 0.005)
    assert build("gmp").momentum == (0.0, 0.8)
    assert build({"name": "gmp", "update_period": "None"}).update_period is None


def test_momentum_sparsities_follow_from_the_gap():
    assert build({"name": "synccp", "final": 0.9}).momentum == (0.0, 0.6)
    assert build({"name": "synccp", "final": 0.9, "gap": 0.1}).momentum == (0.2, 0.8)
    offline = build({"name": "synccp", "initial": 0, "final": 0.5, "sparser": "offline"})
    assert offline.momentum == (0.3, 0.8)


def test_the_gap_of_the_specification_is_rejected():
    """Property 20: 0.3/0 -> 0.9/0.5 with Delta 0.3."""
    section = {"name": "synccp", "final": 0.9, "momentum_initial": 0.0, "momentum_final": 0.5}
    with pytest.raises(ConfigError, match=r"differ by 0\.4.*gap=0\.3.*momentum_final=0\.6"):
        build(section)
    assert build({**section, "momentum_final": 0.6}).momentum == (0.0, 0.6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "synccp", "final": 1.0}, r"sparse\.final=1\.0 is not a sparsity"),
        ({"name": "synccp", "final": 1.0, "momentum_final": 0.7}, r"sparse\.final=1\.0"),
        ({"name": "gmp", "final": 1}, r"sparse\.final=1\.0 is not a sparsity"),
        ({"name": "gmp", "initial": -0.1}, r"sparse\.initial=-0\.1 is not a sparsity"),
        ({"name": "synccp", "initial": -0.1}, "sparsity"),
        ({"name": "synccp", "final": 0.2}, "Choose a smaller sparse.gap"),
        ({"name": "gmp", "initial": 0.9}, r"sparse\.final=0\.8 is below sparse\.initial=0\.9"),
        ({"name": "gmp", "momentum_final": 0.5, "momentum_initial": 0.6}, "momentum_final=0.5 is"),
        ({"name": "synccp", "fnal": 0.9}, r"Unknown key sparse\.fnal\. Did you mean 'final'\?"),
        ({"name": "synccp", "csi": {"kapa": 1}}, r"sparse\.csi\.kapa\. Did you mean 'kappa'"),
        ({"name": "gmp", "gap": 0.3}, r"Unknown key sparse\.gap"),
        ({"name": "syncp"}, "Did you mean 'synccp'"),
        ({"final": 0.9}, "sparse.name is missing. Valid names: asp, fixed, "),
        ("sinccp", "Did you mean 'synccp'"),
        (3, "expected a method's name"),
        ({"name": "synccp", "final": "high"}, r"sparse\.final='high'.*expected float"),
        ({"name": "synccp", "update_period": 2.5}, r"sparse\.update_period=2\.5"),
        ({"name": "synccp", "update_period": True}, r"sparse\.update_period=True"),
        ({"name": "synccp", "update_period": 0}, "at least 1 step"),
        ({"name": "synccp", "stem_dense": "yes"}, "stem_dense='yes'.*bool"),
        ({"name": "synccp", "exclude": [1]}, "exclude"),
        ({"name": "synccp", "csi": "normalised"}, "Did you mean 'normalized'"),
        ({"name": "synccp", "csi": "epoch:soon"}, "after 'epoch:' comes a number"),
        ({"name": "synccp", "csi": {"deadline": 0.8}}, "deadline=0.8 must be before"),
        ({"name": "synccp", "csi": 3}, "sparse.csi=3"),
        ({"name": "synccp", "ema_mode": "leeky"}, "Did you mean 'leaky'"),
        ({"name": "synccp", "sparser": "on"}, "sparse.sparser"),
        ({"name": "synccp", "ramp_end": 0.0}, "ramp_end"),
        ({"name": "gmp", "ramp_start": 0.7}, "before sparse.ramp_end"),
        ({"name": "gmp", "allocation": "globl"}, "Did you mean 'global'"),
        ({"name": "gmp", "granularity": "4:2"}, "granularity=4:2 needs 0 < N < M"),
        ({"name": "gmp", "granularity": "elemnt"}, "granularity='elemnt'.*Did you mean 'element'"),
        ({"name": "gmp", "granularity": "block1"}, "at least 2 wide"),
        ({"name": "gmp", "granularity": "block8", "final": 1.0}, "not a sparsity"),
        ({"name": "gmp", "granularity": "2:4", "final": 1.5}, "not a share of groups"),
        ({"name": "synccp", "csi": "epoch:0.9"}, "starts the ramp after its end"),
        ({"name": "synccp", "scope": "layers"}, "Did you mean 'layer'"),
        ({"name": "synccp", "score": "emma"}, "Did you mean 'ema'"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ConfigError, match=message):
        build(section)


def test_all_groups_become_nm():
    """Section 5.6: shares of groups, 0.3 -> 1.0 online and 0 -> 0.7 offline."""
    config = build({"name": "synccp", "granularity": "2:4"})
    assert (config.initial, config.final, config.momentum) == (0.3, 1.0, (0.0, 0.7))
    assert config.mp_on == "latent"
    assert build("synccp").mp_on == "masked"
    assert build({"name": "gmp", "granularity": "1:4"}).final == 1.0
    assert build({"name": "gmp", "granularity": "block8"}).final == 0.8
    assert build({"name": "synccp", "sync": False}).momentum == (0.0, 0.5)


@pytest.mark.parametrize("text", ["2:4", "1:8", "16:32"])
def test_yaml_reads_a_ratio_as_minutes_and_seconds(text):
    section = OmegaConf.create(f"{{name: gmp, granularity: {text}}}")
    assert build(OmegaConf.to_container(section)).granularity == text


def test_yaml_off_is_the_mode_off():
    """YAML 1.1 reads `csi: off` as false."""
    for csi in (OmegaConf.create("csi: off").csi, "off", {"mode": False}):
        assert build({"name": "synccp", "csi": csi}).csi.mode == "off"
    assert build({"name": "synccp", "csi": "epoch:0.3"}).csi.fixed_epoch == 0.3


def test_plain_data_round_trip():
    config = build({"name": "synccp", "exclude": "layer4*", "csi": {"mode": "epoch:60"}})
    assert config.exclude == ("layer4*",)
    assert build(to_dict(config)) == config
    assert isinstance(config, SyncCPConfig)


def test_enable_completes_the_section_in_place_and_twice_changes_nothing():
    cfg = OmegaConf.create({"sparse": "synccp", "other": 1})
    OmegaConf.set_struct(cfg, True)
    assert sparse_ext.enable(cfg) is cfg
    first = OmegaConf.to_container(cfg)
    assert first["sparse"]["final"] == 0.8
    assert first["other"] == 1
    assert OmegaConf.to_container(sparse_ext.enable(cfg)) == first
    assert sparse_ext.enable(OmegaConf.create({"sparse": None})).sparse is None
    with pytest.raises(ConfigError, match=r"gating\.name='vicreg_duel'.*vicreg_dual"):
        sparse_ext.enable(OmegaConf.create({"gating": "vicreg_duel"}))


def test_the_group_exists_behind_any_yaml(tmp_path):
    (tmp_path / "plain.yaml").write_text("name: never-heard-of-it\n")
    register()
    register()
    with initialize_config_dir(str(tmp_path), version_base="1.2"):
        overrides = ["+sparse=synccp", "sparse.final=0.9", "sparse.csi.mode=epoch:60"]
        cfg = compose("plain", overrides)
        ratio = compose("plain", ["+sparse=synccp", "sparse.granularity=2:4"])
        typo = compose("plain", ["+sparse=gmp", "++sparse.finale=0.9"])
    assert cfg.name == "never-heard-of-it"
    config = build(OmegaConf.to_container(cfg.sparse))
    assert (config.final, config.csi.fixed_epoch) == (0.9, 60)
    config = build(OmegaConf.to_container(ratio.sparse))
    assert (config.granularity, config.final) == ("2:4", 1.0)
    with pytest.raises(ConfigError, match="Did you mean 'final'"):
        sparse_ext.enable(typo)


def test_registering_imports_no_torch():
    code = (
        "import sys; from sparse_ext.extension import register, enable; register(); "
        "import omegaconf; enable(omegaconf.OmegaConf.create({'sparse': 'synccp'})); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("pattern", "final", "said"),
    [("2:4", 0.5, "25.0%"), ("1:4", 0.4, "30.0%"), ("2:4", 0.9, "45.0%")],
)
def test_a_share_of_groups_is_said_as_a_share_of_weights(pattern, final, said):
    told = build({"name": "gmp", "granularity": pattern, "final": final}).in_weights()
    assert f"sparse.final={final:g} with {pattern}" in told
    assert said in told


@pytest.mark.parametrize("section", [{"granularity": "2:4"}, {"final": 0.5}])
def test_where_there_is_nothing_to_say(section):
    assert build({"name": "gmp", **section}).in_weights() == ""
