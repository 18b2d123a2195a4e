# SPDX-License-Identifier: MIT
"""What mistakes in a configuration are answered with: the messages in messages.json, word by word.

To take over messages that are meant to change: `python -m tests.args.test_messages`.
"""

import json
import warnings
from pathlib import Path

import pytest

from solo.args import linear, pretrain
from solo.data.views.augmentation_keys import checked_augmentation
from solo.errors import ConfigError
from solo.methods import METHODS
from sparse_ext.extension import register
from sparse_ext.tickets import config as tickets
from tests.programs.tiny import AUGMENTATION, LINEAR, PRETRAIN, config

pytestmark = pytest.mark.unit
FILE = Path(__file__).with_name("messages.json")

KEYS = [
    {"nmae": "x"},
    {"max_epocs": 1},
    {"max_epochs": 0},
    {"max_epochs": "many"},
    {"max_epochs": 1.5},
    {"name": 3},
    {"name": "a/b"},
    {"checkpoint": 3},
    {"checkpoint.frequncy": 2},
    {"checkpoint.frequency": 0},
    {"checkpoint.enabled": "yes"},
    {"optimizer.lr": "fast"},
    {"optimizer.lr": -1.0},
    {"optimizer.lr": None},
    {"optimizer.batch_size": 0},
    {"optimizer.batch_size": True},
    {"optimizer.name": "sdg"},
    {"optimizer.kwargs": {"momentm": 0.9}},
    {"optimizer.kwargs": [1]},
    {"scheduler.interval": "batch"},
    {"scheduler.warmup_epochs": -1},
    {"data.dataset": "cifar"},
    {"data.format": "folder"},
    {"data.num_workers": -1},
    {"data.format": "dali"},
    {"devices": "two"},
    {"devices": []},
    {"knn_eval.k": 0},
    {"knn_eval.distance_func": "cosin"},
    {"momentum.base_tua": 0.9},
    {"method_kwargs.temprature": 0.1},
    {"method_kwargs.temperature": "cold"},
    {"method_kwargs.proj_hidden_dim": 0},
    {"method_kwargs.proj_hidden_dim": None},
    {"augmentations": []},
    {"augmentations": [{"crop_size": 32}]},
    {"augmentations": [{**AUGMENTATION, "grayscle": {"prob": 1}}]},
    {"augmentations": [{**AUGMENTATION, "grayscale": {"prb": 1}}]},
    {"augmentations": [{**AUGMENTATION, "crop_size": 0}]},
    {"augmentations": [{**AUGMENTATION, "grayscale": 0.5}]},
    {"sparse": "syncp"},
    {"sparse": 3},
    {"sparse": {"final": 0.9}},
    {"sparse": {"name": "synccp", "finl": 0.9}},
    {"sparse": {"name": "synccp", "final": 90}},
    {"sparse": {"name": "synccp", "final": "most"}},
    {"sparse": {"name": "synccp", "granularity": "2:x"}},
    {"sparse": {"name": "synccp", "csi": {"kapa": 3}}},
    {"sparse": {"name": "gmp", "allocation": "globl"}},
    {"gating": {"name": "cgd"}},
    {"gating": {"name": "cdg", "groups": 3}},
    {"gating": {"name": "cdg", "group": 3}},
    {"gating": {"name": "cdg", "groups": "four"}},
]
LINEAR_KEYS = [
    {"mixupp": 1},
    {"label_smoothing": -1},
    {"eval_encoder": "both"},
    {"data.image_size": 0},
    {"backbone.name": "resnet81"},
]
ENTRIES = [
    {"crop_size": None},
    {"crop_size": "big"},
    {"num_crops": 0},
    {"padding": 4},
    {"rrc": {"enabled": "yes"}},
    {"rrc": {"crop_min_scale": 0.9, "crop_max_scale": 0.2}},
    {"rrc": {"crop_min": 0.2}},
    {"color_jitter": {"prob": 1.0, "brightness": 0.4}},
    {"color_jitter": {"prob": 2.0}},
    {"color_jitter": {"prob": 1.0, "brightness": 1, "contrast": 1, "saturation": 1, "hue": 1}},
    {"rotation": {"prob": 0.5}},
    {"rotation": {"prob": 0.5, "degrees": 400}},
    {"mean": [1, 2]},
    {"std": ["a", "b", "c"]},
]
SECTIONS = [
    ("tickets", {"rate": 1.5}),
    ("tickets", {"rates": 0.5}),
    ("tickets", {"levels": 0}),
    ("tickets", {"levels": "all"}),
    ("tickets", {"reset": "winning"}),
    ("retrain", {"source": ""}),
    ("retrain", 3),
]


def told(task):
    """The message of the error that `task` ends in, empty where it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            task()
        except ConfigError as error:
            return str(error).split("Valid names: ")[0]
    return ""


def of_run(base, change):
    cfg = config(base, **{key.replace(".", "__"): value for key, value in change.items()})

    def parse():
        (pretrain if base is PRETRAIN else linear).parse_cfg(cfg)
        if base is PRETRAIN:
            METHODS[cfg.method].add_and_assert_specific_cfg(cfg)

    return told(parse)


def messages():
    register()
    found = [["pretrain", c, of_run(PRETRAIN, c)] for c in KEYS]
    found += [["linear", c, of_run(LINEAR, c)] for c in LINEAR_KEYS]
    for change in ENTRIES:
        entry = {**AUGMENTATION, **change}
        found.append(["augmentation", change, told(lambda e=entry: checked_augmentation(e))])
    kinds = {"tickets": tickets.TicketsConfig, "retrain": tickets.RetrainConfig}
    for name, section in SECTIONS:
        text = told(lambda n=name, s=section: tickets.build(kinds[n], s, n))
        found.append([name, section, text])
    return found


def test_messages_are_those_on_record():
    recorded = json.loads(FILE.read_text(encoding="utf-8"))
    for found, expected in zip(messages(), recorded, strict=True):
        assert found == expected


def test_every_mistake_is_answered():
    assert [case for *case, text in json.loads(FILE.read_text(encoding="utf-8")) if not text] == []


if __name__ == "__main__":
    FILE.write_text(json.dumps(messages(), indent=0) + "\n", encoding="utf-8")
