# SPDX-License-Identifier: MIT
"""Every published recipe composes to the published values (tests/args/recipes.json).

The YAML files share their common part through `pkg://solo.recipes`; a change there must not move
any recipe's value.
"""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

pytestmark = pytest.mark.unit
SCRIPTS = Path(__file__).parents[2] / "scripts"
RECIPES = json.loads((Path(__file__).parent / "recipes.json").read_text())


def composed(path, overrides=()):
    file = (SCRIPTS / path).resolve()
    with initialize_config_dir(str(file.parent), version_base="1.2"):
        return OmegaConf.to_container(compose(file.stem, overrides=list(overrides)))


@pytest.mark.parametrize("path", RECIPES)
def test_values_in_effect(path):
    cfg = composed(path)
    assert cfg.pop("wandb") == {"enabled": False, "entity": None, "project": "solo-learn"}
    assert cfg == RECIPES[path]


def test_wandb_is_one_word_away():
    cfg = composed("pretrain/cifar/byol.yaml", ["wandb=private", "wandb.project=mine"])
    assert cfg["wandb"] == {"enabled": True, "entity": None, "project": "mine"}
