# SPDX-License-Identifier: MIT
"""Sparse runs with packed checkpoints: resumed equals straight, and the size of the files."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from solo.checkpoints.files import read_checkpoint
from solo.files.packed import pack
from sparse_ext import sparsify
from tests.pruning.toys import data, toy, trainer
from tests.training.runs import FAST, OPTIMIZERS

pytestmark = pytest.mark.unit
SPARSE = {**FAST, "final": 0.8}


class Saving(Callback):
    """A packed checkpoint after some epochs."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_epoch_end(self, run, module):
        path = self.folder / f"{run.current_epoch}.ckpt"
        run.save_checkpoint(path)
        assert pack(path)


def run(
    folder=None,
    ckpt=None,
    seed=0,
    optimizer="sgd",
    momentum=True,
    section=SPARSE,
    packed=True,
    **kwargs,
):
    model = toy(seed, width=32, optimizer=OPTIMIZERS[optimizer], momentum=momentum)
    sparsify(model, section).pack = packed
    callbacks = [] if folder is None else [Saving(folder)]
    loader = data(width=32)
    trainer(epochs=4, callbacks=callbacks, **kwargs).fit(model, loader, ckpt_path=ckpt)
    return model


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("optimizer", "momentum", "section"),
    [
        ("sgd", True, SPARSE),
        ("adam", True, SPARSE),
        ("lars", False, SPARSE),
        ("adamw", True, {"name": "granet_ssl", "update_period": 2}),
        ("sgd", False, {"name": "sr_ste", "granularity": "2:4"}),
    ],
)
def test_resumed_from_a_packed_checkpoint_equals_straight(
    tmp_path, optimizer, momentum, section, packed
):
    settings = {"optimizer": optimizer, "momentum": momentum, "section": section, "packed": packed}
    straight = run(tmp_path, **settings)
    resumed = run(ckpt=tmp_path / "1.ckpt", seed=7, **settings)
    state = resumed.state_dict()
    for key, value in straight.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_scores_that_nothing_will_read_are_not_kept(tmp_path):
    section = {**SPARSE, "ramp_end": 0.5, "regrow_after_ramp": False}
    straight = run(tmp_path, section=section)
    early, late = (torch.load(tmp_path / f"{n}.ckpt", weights_only=True) for n in (0, 2))
    assert early["state_dict"]["backbone.3.score_packed"].numel() > 0
    assert late["state_dict"]["backbone.3.score_packed"].untyped_storage().nbytes() == 0
    for epoch in (0, 2):
        resumed = run(ckpt=tmp_path / f"{epoch}.ckpt", seed=7, section=section).state_dict()
        for key, value in straight.state_dict().items():
            assert key.endswith("score") or torch.equal(value, resumed[key]), key


def test_without_compression_it_is_hardly_larger_than_a_dense_one(tmp_path):
    """As in the quickstart: AdamW, both encoders sparse, no update after the ramp."""
    sizes = {}
    section = {**SPARSE, "ramp_end": 0.5, "regrow_after_ramp": False}
    for name in ("dense", "sparse"):
        model = toy(width=96, optimizer=OPTIMIZERS["adamw"])
        if name == "sparse":
            sparsify(model, section)
        fit = trainer(epochs=3)
        fit.fit(model, data(width=96))
        fit.save_checkpoint(tmp_path / name)
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["sparse"] / sizes["dense"] < 1.15


def test_a_packed_file_is_an_archive_that_torch_reads(tmp_path):
    run(tmp_path)
    path = tmp_path / "3.ckpt"
    assert zipfile.ZipFile(path).testzip() is None
    kinds = {record.compress_type for record in zipfile.ZipFile(path).infolist()}
    assert kinds == {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    content = read_checkpoint(path)
    weight, mask = (content["state_dict"][f"backbone.3.{name}"] for name in ("weight", "mask"))
    assert weight.shape == mask.shape
    assert torch.equal(weight != 0, mask)


def test_packing_twice_and_packing_what_is_no_archive(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"x": torch.zeros(100_000), "y": torch.randn(50)}, path)
    content = torch.load(path)
    assert pack(path)
    small = path.stat().st_size
    assert small < 60_000  # a bit for each byte that is zero
    assert pack(path)
    assert path.stat().st_size == small
    assert torch.equal(torch.load(path)["y"], content["y"])
    (tmp_path / "b.ckpt").write_text("no archive")
    assert not pack(tmp_path / "b.ckpt")
    assert (tmp_path / "b.ckpt").read_text() == "no archive"
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt"]


@pytest.mark.parametrize(("final", "most"), [(0.8, 1.05), (0.31, 1.15)])
def test_a_packed_sparse_checkpoint_is_no_larger_than_a_dense_one(tmp_path, final, most):
    """Of an encoder pair with SGD, whose state has the fewest other tensors."""
    sizes = {}
    for name, section in {"dense": None, "sparse": {**SPARSE, "final": final}}.items():
        model = toy(width=96)
        if section is not None:
            sparsify(model, section).pack = True
        fit = trainer(epochs=3)
        fit.fit(model, data(width=96))
        path = tmp_path / f"{name}.ckpt"
        fit.save_checkpoint(path)
        if section is not None:
            assert pack(path)
        sizes[name] = path.stat().st_size
    assert sizes["sparse"] / sizes["dense"] < most
