# SPDX-License-Identifier: MIT
"""`performance.profile` of a whole run: every part that the run has is named and stored."""

import json

import pytest

from solo.programs.pretrain import pretrain
from sparse_ext import extension
from tests.programs.tiny import PRETRAIN, config, run_of

pytestmark = pytest.mark.unit
ALWAYS = (
    "data wait",
    "augmentation",
    "forward",
    "backward",
    "optimizer",
    "momentum encoder",
    "logging",
)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"data__format": "resident"}, ALWAYS),
        (
            {
                "data__format": "resident",
                "sparse": {"name": "rigl", "final": 0.5, "update_period": 2},
            },
            (*ALWAYS, "masks and gates"),
        ),
    ],
    ids=["dense", "sparse"],
)
def test_every_part_is_printed_and_kept(tmp_path, monkeypatch, capsys, more, parts):
    monkeypatch.chdir(tmp_path)
    cfg = config(PRETRAIN, performance={"profile": True}, limit_train_batches=6, **more)
    extension.enable(cfg)
    pretrain(cfg)
    printed = capsys.readouterr().out
    table = printed[printed.index("Where the time goes") :]
    run, _ = run_of(tmp_path)
    stored = json.loads((run / "profile.json").read_text())
    assert set(parts) <= set(stored["seconds"])
    assert stored["images_per_step"] == 16
    for part in parts:
        assert stored["seconds"][part] > 0
        assert f"\n{part}" in table
    assert "images/s" in table
