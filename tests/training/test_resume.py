# SPDX-License-Identifier: MIT
"""A resumed run equals a straight one, bit by bit, from any step (property 6)."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from solo.checkpoints.files import read_checkpoint
from solo.errors import CheckpointError
from sparse_ext import sparsify
from sparse_ext.training import resume
from tests.pruning.toys import Toy, data, toy, trainer

pytestmark = pytest.mark.unit

SECTION = {"name": "synccp", "csi": {"warmup_epochs": 0, "kappa": 1.0}}


class Recording(Toy):
    """As solo's methods: tells the file which step the momentum encoder has seen."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["last_step"] = self.last_step

    def on_load_checkpoint(self, checkpoint):
        self.resumed = checkpoint["last_step"]

    def on_train_start(self):
        if hasattr(self, "resumed"):
            self.last_step = self.resumed
            self.on_train_batch_end()  # a file may lie between a step and its momentum update


class Forward(torch.utils.data.DataLoader):
    """Batch k of the run is always the same, also after a resume within an epoch."""

    def __init__(self, loader):
        self.inner, self.skip = list(loader), 0
        super().__init__(range(len(self.inner)))

    def __iter__(self):
        start, self.skip = self.skip, 0
        return iter(self.inner[start:])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def everything(model, run):
    """Weights, buffers, optimizer state, the pruner's state and what was counted, comparable."""
    state = resume.take(model._pruning.pruner) | {"cost": model._pruning.meter.state_dict()}
    states = run.optimizers[0].state_dict()["state"].values()
    buffers = [v for s in states for v in s.values() if isinstance(v, torch.Tensor)]
    return dict(model.state_dict()), buffers, state


def same(a, b):
    assert a[0].keys() == b[0].keys()
    wrong = [name for name in a[0] if not torch.equal(a[0][name], b[0][name])]
    assert not wrong
    assert all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    previous = [s["extra"].pop("previous", {}) for s in (a[2], b[2])]
    assert all(torch.equal(previous[0][k], previous[1][k]) for k in previous[0] | previous[1])
    assert a[2] == b[2]


def model_of(section, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = Recording(**kwargs)
    sparsify(model, section)
    return model


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(
    ("name", "granularity", "at"),
    [
        *(("synccp", "element", at) for at in (3, 10, 12, 15, 18)),
        *(("gmp", "element", at) for at in (3, 10, 12, 15, 18)),
        *(("synccp", granularity, at) for granularity in ("2:4", "block8") for at in (3, 18)),
    ],
)
def test_resumed_equals_straight(tmp_path, name, granularity, momentum, at):
    """Files before the ramp, at epoch ends, between updates and within epochs of 5 steps."""
    section = {**(SECTION if name == "synccp" else {"name": "gmp"}), "update_period": 2}
    section |= {"granularity": granularity, "debug": True}
    files = ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=at, save_top_k=-1, save_on_train_epoch_end=False
    )
    straight = model_of(section, momentum=momentum)
    run = trainer(tmp_path, 5, callbacks=[files], enable_checkpointing=True)
    run.fit(straight, Forward(data()))
    expected = everything(straight, run)
    resumed = model_of(section, seed=9, momentum=momentum)
    loader = Forward(data())
    loader.skip = at % 5
    again = trainer(tmp_path, 5)
    again.fit(resumed, loader, ckpt_path=tmp_path / f"step={at}.ckpt")
    same(everything(resumed, again), expected)
    assert resumed._pruning.pruner.t == 25
    assert resumed._pruning.pruner.ramp.t0 < 25
    assert resumed._pruning.meter.steps == 25


def test_a_file_of_an_epoch_end_knows_that_epoch(tmp_path):
    """Our hook runs before others may save, or the epoch's comparison would be lost."""
    from lightning.pytorch import Callback

    class Saver(Callback):
        def on_train_epoch_end(self, run, module):
            run.save_checkpoint(tmp_path / f"{run.current_epoch}.ckpt")

    section = {**SECTION, "csi": {"warmup_epochs": 0, "kappa": 0.0, "deadline": 0.5}}
    trainer(tmp_path, 5, callbacks=[Saver()]).fit(model_of(section), data())
    state = torch.load(tmp_path / "1.ckpt", weights_only=True)["sparse_state"]
    assert [row[0] for row in state["extra"]["csi"]["history"]] == [1, 2]
    assert state["t"] == 10


def test_files_hold_plain_data_and_all_buffers(tmp_path):
    run = trainer(tmp_path, 1)
    run.fit(model_of(SECTION), data())
    run.save_checkpoint(tmp_path / "a.ckpt")
    file = torch.load(tmp_path / "a.ckpt", weights_only=True)
    packed = [f"{name}_packed" for name in ("mask", "shadow", "score")]
    keys = {k for k in file["state_dict"] if k.startswith("backbone.3.")}
    assert keys == {f"backbone.3.{k}" for k in ("weight", *packed)}
    assert "momentum_backbone.3.score" not in file["state_dict"]
    mask, weight = (file["state_dict"][f"backbone.3.{k}"] for k in ("mask_packed", "weight"))
    assert (mask.dtype, len(mask)) == (torch.uint8, -(-weight.numel() // 8))
    unpacked = read_checkpoint(tmp_path / "a.ckpt")["state_dict"]
    assert torch.equal(unpacked["backbone.3.mask"], weight != 0)


def test_masks_on_one_side_only(tmp_path):
    sparse, dense = tmp_path / "sparse.ckpt", tmp_path / "dense.ckpt"
    for path, model in ((sparse, model_of(SECTION)), (dense, Recording())):
        run = trainer(tmp_path, 1)
        run.fit(model, data())
        run.save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"no mask for 'backbone\.3'.*leave out the sparse"):
        trainer(tmp_path).fit(model_of(SECTION), data(), ckpt_path=dense)
    with pytest.raises(RuntimeError, match=r"backbone\.3\.mask"):
        trainer(tmp_path).fit(Recording(), data(), ckpt_path=sparse)
    file = torch.load(sparse, weights_only=True)
    del file["sparse_state"]
    torch.save(file, sparse)
    with pytest.raises(CheckpointError, match="holds no state of a sparse run"):
        trainer(tmp_path).fit(model_of(SECTION), data(), ckpt_path=sparse)


def test_not_strict_loading_does_not_drop_masks():
    model = model_of(SECTION)
    with pytest.raises(CheckpointError, match="no mask"):
        model.load_state_dict(toy().state_dict(), strict=False)


def test_side_buffers_are_made_where_a_file_has_them(tmp_path):
    """`load_state_dict` on a patched module that has never been fitted."""
    trained = model_of(SECTION)
    trainer(tmp_path, 1).fit(trained, data())
    fresh = model_of(SECTION, seed=3)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.backbone[3].shadow, trained.backbone[3].shadow)


def test_another_method_or_lost_masks(tmp_path):
    run = trainer(tmp_path, 2)
    run.fit(model_of(SECTION), data())
    path = tmp_path / "a.ckpt"
    run.save_checkpoint(path)
    with pytest.raises(CheckpointError, match="this run has gmp"):
        trainer(tmp_path, 3).fit(model_of({"name": "gmp"}), data(), ckpt_path=path)
    file = torch.load(path, weights_only=True)
    file["state_dict"]["backbone.3.mask_packed"].fill_(255)
    torch.save(file, path)
    with pytest.raises(CheckpointError, match="lost its masks"):
        trainer(tmp_path, 3).fit(model_of(SECTION), data(), ckpt_path=path)


def test_a_second_run_starts_from_the_sparsity_that_is_there(tmp_path):
    model = model_of({"name": "gmp", "final": 0.5})
    trainer(tmp_path, 2).fit(model, data())
    n = model._pruning.pruner.online.masks.n
    trainer(tmp_path, 2).fit(model, data())
    assert model._pruning.pruner.begins == pytest.approx([0.5, 0.5])
    assert model._pruning.pruner.kept == [n // 2, n // 2]
