# SPDX-License-Identifier: MIT
"""DALI data modules: ranks, epochs, a Lightning run, what is refused."""

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

pytest.importorskip("nvidia.dali")


from solo.data import dali_dataloader
from solo.data.catalogue import IMAGENET_STD
from solo.data.classification_dataloader import prepare_data
from solo.data.dali_dataloader import (
    ClassificationDALIDataModule,
    NormalPipelineBuilder,
    PretrainDALIDataModule,
    PretrainPipelineBuilder,
)
from solo.errors import ConfigError, DataError
from tests.data.conftest import write_folder
from tests.data.dali.loaders import (
    ENTRY,
    colours,
    expected_colour,
    module_of,
    plain_view,
    val_loader,
    views,
)
from tests.data.pictures import encoded, textured

pytestmark = pytest.mark.dali


def test_pretrain_module_has_real_indexes_on_two_nodes(folder):
    """Both nodes have local rank 0."""
    loaders = [
        module_of(
            PretrainDALIDataModule, folder, plain_view(), 1, 0, batch_size=7, rank=rank,
            world_size=2,
        ).train_dataloader()
        for rank in range(2)
    ]  # fmt: skip
    batches = [batch for loader in loaders for batch in loader]
    indexes = [i for batch in batches for i in batch[0].tolist()]
    assert len(indexes) == len(set(indexes)) == 14
    for batch_indexes, (view,), targets in batches:
        assert targets.tolist() == [i // 5 for i in batch_indexes.tolist()]
        near = zip(colours(view), batch_indexes.tolist(), strict=True)
        assert all(abs(c - expected_colour(i)) <= 3 for c, i in near)


def test_ranks_and_resumed_epochs_draw_other_crops(folder):
    def first_views(rank, epoch):
        module = module_of(
            PretrainDALIDataModule, folder, views((ENTRY, 2)), 2, 0, batch_size=4, rank=rank,
            world_size=2,
        )  # fmt: skip
        module.trainer.current_epoch = epoch
        indexes, crops, _ = next(module.train_dataloader())
        return indexes.tolist(), crops[0]

    again = [first_views(0, 0) for _ in range(2)]
    assert again[0][0] == again[1][0]
    assert torch.equal(again[0][1], again[1][1])
    assert first_views(0, 3)[0] != again[0][0]
    assert not torch.equal(first_views(1, 0)[1], again[0][1])


def test_classification_module(folder, tmp_path):
    write_folder(tmp_path / "val", classes=("a", "b", "c"), per_class=2, size=32)
    module = module_of(ClassificationDALIDataModule, folder, tmp_path / "val", batch_size=4)
    assert [len(y) for _, y in module.train_dataloader()] == [4, 4, 4]
    assert [y.tolist() for _, y in module.val_dataloader()] == [[0, 0, 1, 1], [2, 2]]


def test_validation_views_are_those_of_image_folder(tmp_path):
    """From JPEGs to batches: odd sizes, an orientation, an image that grows, one without colour."""
    shapes = [(375, 500), (500, 313), (257, 256), (150, 150), (300, 421), (240, 901)]
    for i, shape in enumerate(shapes):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        picture = encoded(textured(*shape, seed=i), orientation=6 if i == 4 else None)
        (tmp_path / "ab"[i % 2] / f"{i}.jpg").write_bytes(picture)
    Image.open(tmp_path / "a" / "0.jpg").convert("L").save(tmp_path / "b" / "grey.jpg")
    module = module_of(ClassificationDALIDataModule, tmp_path, tmp_path, batch_size=7)
    ((dali, labels),) = module.val_dataloader()
    loader = prepare_data("custom", tmp_path, tmp_path, batch_size=7, num_workers=0)[1]
    ((wanted, targets),) = loader
    assert labels.tolist() == targets.tolist()
    off = (dali - wanted).abs() * 255 * torch.tensor(IMAGENET_STD)[:, None, None]
    assert off.max() < 1.01


def test_a_lightning_run(folder):
    import lightning.pytorch as pl

    class Recorder(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen, self.val = {}, []

        def training_step(self, batch, batch_idx):
            self.seen.setdefault(self.current_epoch, []).extend(batch[0].tolist())
            return self.weight.sum()

        def validation_step(self, batch, batch_idx):
            if not self.trainer.sanity_checking:
                self.val += batch[1].tolist()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = PretrainDALIDataModule(
        "custom", folder, views((ENTRY, 2)), 2, 0, 4, num_workers=1, dali_device="cpu"
    )
    data.val_dataloader = lambda: val_loader(folder, 4)
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert [len(set(seen)) for seen in module.seen.values()] == [12, 12, 12]
    assert module.val == [i // 5 for i in range(15)] * 3


def test_configuration_defaults():
    cfg = PretrainDALIDataModule.add_and_assert_specific_cfg(OmegaConf.create({}))
    assert OmegaConf.to_container(cfg) == {
        "dali": {"device": "gpu", "encode_indexes_into_labels": False}
    }
    cfg = ClassificationDALIDataModule.add_and_assert_specific_cfg(OmegaConf.create({}))
    assert OmegaConf.to_container(cfg) == {"dali": {"device": "gpu"}}
    with pytest.raises(ConfigError, match=r"dali\.device must be gpu or cpu, got 'cuda'"):
        PretrainDALIDataModule.add_and_assert_specific_cfg(
            OmegaConf.create({"dali": {"device": "cuda"}})
        )


@pytest.mark.parametrize("share", [1.0, 0.08])
def test_crops_show_the_share_that_was_asked_for(tmp_path, share):
    framed = Image.new("RGB", (64, 64), "white")
    framed.paste((0, 0, 0), (8, 8, 56, 56))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            framed.save(tmp_path / name / f"{i}.png")
    module = module_of(
        ClassificationDALIDataModule, tmp_path, tmp_path, batch_size=8, crop_min_scale=share
    )
    images = next(iter(module.train_dataloader()))[0]
    white = images.amax()
    edges = images[:, :, [0, -1]].flatten(1), images[..., [0, -1]].flatten(1)
    framed_ones = torch.cat(edges, 1).amin(1) > white - 1.0
    assert framed_ones.all() == (share == 1.0)


def test_bad_input(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"format=dali does not go with data.dataset='cifar10'"):
        ClassificationDALIDataModule("cifar10", folder, folder, 4)
    with pytest.raises(AssertionError, match="got 'tpu'"):
        PretrainDALIDataModule("custom", folder, plain_view(), 1, 0, 4, dali_device="tpu")
    with pytest.raises(DataError, match=r"data.val_path: there is no folder"):
        NormalPipelineBuilder(tmp_path / "none", 4, "cpu", validation=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"data.train_path: .* has no images in class folders"):
        PretrainPipelineBuilder(tmp_path / "empty", 4, "cpu", plain_view())
    with pytest.raises(DataError, match=r"set data\.no_labels=True"):
        PretrainPipelineBuilder(folder / "a", 4, "cpu", plain_view())
    with pytest.raises(DataError, match="holds no images"):
        PretrainPipelineBuilder(folder, 4, "cpu", plain_view(), no_labels=True)
    module = module_of(PretrainDALIDataModule, folder, plain_view(), 1, 0, batch_size=16)
    with pytest.raises(ConfigError, match=r"\(15 images for 1 ranks\)"):
        module.train_dataloader()
    module.dali_device = "gpu"
    monkeypatch.setattr(dali_dataloader.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"no CUDA GPU; set dali\.device=cpu"):
        module.setup()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "header"])
def test_broken_image_is_named(folder, damage):
    path = folder / "b" / "img_2.jpg"
    whole = path.read_bytes()
    path.write_bytes({
        "truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b"", "header": whole[:60],
    }[damage])  # fmt: skip
    module = module_of(PretrainDALIDataModule, folder, plain_view(), 1, 0, batch_size=15)
    with pytest.raises(DataError, match=r"^Cannot read image '/.*/b/img_2.jpg': [^\n]*$"):
        list(module.train_dataloader())
