# SPDX-License-Identifier: MIT
"""From keys to a Trainer: machines, and files of upstream that torch's safe reader refuses."""

import functools

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from solo.args.pretrain import parse_cfg
from solo.checkpoints.writer import CheckpointWriter
from solo.programs import training
from solo.programs.training import find_resume, trainer_arguments
from tests.programs.tiny import PRETRAIN, config

pytestmark = pytest.mark.unit


def arguments(**overrides):
    return trainer_arguments(config(PRETRAIN, **overrides))


@pytest.mark.parametrize(("devices", "count"), [([0], 1), ([0, 1], 2), (2, 2), ("auto", 1)])
def test_lists_of_devices_work_on_the_cpu(devices, count):
    assert arguments(devices=devices)["devices"] == count


def test_only_arguments_of_the_trainer_are_passed_on():
    kwargs = arguments(gradient_clip_val=0.5)
    assert kwargs["gradient_clip_val"] == 0.5
    assert kwargs["max_epochs"] == 1
    assert not {"method", "logger", "callbacks", "enable_checkpointing"} & set(kwargs)


def test_strategy():
    assert arguments(strategy="ddp")["strategy"] == "auto"  # one process
    assert arguments()["strategy"] == "auto"
    two = arguments(strategy="ddp", devices=2)["strategy"]
    assert type(two).__name__ == "DDPStrategy"
    assert two._ddp_kwargs["find_unused_parameters"] is False
    assert arguments(strategy="ddp_spawn", devices=2)["strategy"] == "ddp_spawn"


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_throughout_is_warned_of(precision):
    with pytest.warns(UserWarning, match=f"{precision} keeps .* Use precision=bf16-mixed"):
        assert arguments(precision=precision)["precision"] == precision


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true", 32])
def test_other_precisions_are_not(precision, recwarn):
    arguments(precision=precision)
    assert not [w for w in recwarn if "precision" in str(w.message)]


def test_synchronised_batch_norm_needs_a_gpu():
    assert "sync_batchnorm" not in arguments(sync_batchnorm=True)
    with pytest.warns(UserWarning, match="sync_batchnorm needs a GPU"):
        assert "sync_batchnorm" not in arguments(sync_batchnorm=True, devices=2)


def test_lightning_does_not_requeue_by_itself(monkeypatch):
    for name, value in {"NTASKS": "1", "JOB_NAME": "x", "NTASKS_PER_NODE": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (plugin,) = arguments()["plugins"]
    assert plugin.auto_requeue is False


def test_files_with_pickled_methods_can_be_resumed(tmp_path):
    content = {
        "state_dict": {"backbone.w": torch.ones(2)},
        "loops": {},
        "optimizer_states": [],
        "lr_schedulers": [{"last_epoch": 3, "get_lr": functools.partial(print)}],
    }
    torch.save(content, tmp_path / "old.ckpt")
    cfg = parse_cfg(config(PRETRAIN, resume_from_checkpoint=str(tmp_path / "old.ckpt")))
    cleaned = torch.load(find_resume(cfg, tmp_path).path)
    assert cleaned["lr_schedulers"][0]["last_epoch"] == 3
    assert torch.equal(cleaned["state_dict"]["backbone.w"], torch.ones(2))


def test_checkpoints_are_written_by_our_own_plugin_or_by_the_one_that_is_given():
    for given in (None, [TorchCheckpointIO()], TorchCheckpointIO()):
        plain = {"strategy": "auto", "accelerator": "cpu", "devices": 1, "plugins": given}
        plain |= {"barebones": False, "enable_progress_bar": False}
        writer = training._trainer(plain, [], []).strategy.checkpoint_io
        assert type(writer) is (CheckpointWriter if given is None else TorchCheckpointIO)
