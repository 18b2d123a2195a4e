# SPDX-License-Identifier: MIT
"""DALI pipelines and iterators on generated JPEG folders, on the CPU."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")

from nvidia.dali import fn
from nvidia.dali.plugin.base_iterator import LastBatchPolicy

from solo.data.dali_dataloader import (
    ClassificationDALIDataModule,
    CustomNormalPipelineBuilder,
    NormalPipelineBuilder,
    PretrainPipelineBuilder,
    Wrapper,
)
from solo.data.datasets import splits
from solo.data.temp_dali_fix import TempDALIGenericIterator
from solo.errors import ConfigError, DataError
from tests.data.conftest import write_folder
from tests.data.dali.loaders import (
    ENTRY,
    colours,
    expected_colour,
    module_of,
    plain_view,
    pretrain_loader,
    started,
    val_loader,
    views,
)

pytestmark = pytest.mark.dali


@pytest.mark.parametrize("encode", [False, True])
def test_pretrain_batches(folder, encode):
    transforms = views((ENTRY, 2), ({**ENTRY, "crop_size": 18}, 1))
    builder = PretrainPipelineBuilder(
        str(folder), 4, "cpu", transforms, num_threads=1, encode_indexes_into_labels=encode
    )
    assert (builder.seed, builder.device, builder.batch_size) == (12, "cpu", 4)
    assert repr(builder) == repr(transforms)
    assert hasattr(builder, "conversion_map") == encode
    kwargs = {"conversion_map": builder.conversion_map} if encode else {}
    loader = pretrain_loader(builder, 4, n_views=3, **kwargs)
    assert len(loader) == 3
    indexes, crops, targets = next(iter(loader))
    assert [tuple(c.shape) for c in crops] == [(4, 3, 32, 32)] * 2 + [(4, 3, 18, 18)]
    assert indexes.shape == targets.shape == (4,)
    assert indexes.dtype == targets.dtype == torch.int64
    if encode:
        assert targets.tolist() == [i // 5 for i in indexes.tolist()]
    else:
        assert indexes.tolist() == [0, 1, 2, 3]


def test_made_up_indexes_differ_between_ranks(folder):
    builder = PretrainPipelineBuilder(
        folder, 4, "cpu", plain_view(), shard_id=1, num_shards=2, num_threads=1
    )
    assert next(pretrain_loader(builder, 4))[0].tolist() == [4, 5, 6, 7]


def test_indexes_lead_to_the_right_file(folder):
    builder = PretrainPipelineBuilder(
        folder, 5, "cpu", plain_view(), num_threads=1, encode_indexes_into_labels=True
    )
    loader = pretrain_loader(builder, 5, conversion_map=builder.conversion_map)
    seen = {}
    for indexes, (view,), targets in loader:
        for index, colour, target in zip(indexes.tolist(), colours(view), targets, strict=True):
            assert abs(colour - expected_colour(index)) <= 3
            assert builder.files[index].endswith(f"{'abc'[index // 5]}/img_{index % 5}.jpg")
            seen[index] = int(target)
    assert seen == {i: i // 5 for i in range(15)}


@pytest.mark.parametrize(("batch_size", "num_shards"), [(3, 2), (7, 2), (2, 4), (5, 3), (4, 1)])
def test_shards_partition_each_epoch(folder, batch_size, num_shards):
    """Batch and shard sizes that fit and that do not: no image twice in an epoch, on any rank."""

    def loader_of(rank):
        builder = PretrainPipelineBuilder(
            folder, batch_size, "cpu", plain_view(), shard_id=rank, num_shards=num_shards,
            num_threads=1, encode_indexes_into_labels=True,
        )  # fmt: skip
        return pretrain_loader(builder, batch_size, conversion_map=builder.conversion_map)

    loaders = [loader_of(rank) for rank in range(num_shards)]
    batches = 15 // num_shards // batch_size
    orders = []
    for _ in range(4):
        epoch = [[batch[0].tolist() for batch in loader] for loader in loaders]
        assert [len(rank) for rank in epoch] == [len(loader) for loader in loaders]
        assert {len(rank) for rank in epoch} == {batches}
        flat = [i for rank in epoch for batch in rank for i in batch]
        assert len(flat) == len(set(flat)) == batches * batch_size * num_shards
        orders.append(flat)
    assert len({tuple(order) for order in orders}) == 4


def test_every_image_comes_up_when_shards_fit(folder):
    builders = [
        PretrainPipelineBuilder(
            folder, 5, "cpu", plain_view(), shard_id=rank, num_shards=3, num_threads=1,
            encode_indexes_into_labels=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    loaders = [pretrain_loader(b, 5, conversion_map=b.conversion_map) for b in builders]
    for _ in range(2):
        seen = sorted(i for loader in loaders for batch in loader for i in batch[0].tolist())
        assert seen == list(range(15))


def test_epoch_that_is_stopped_by_its_length_leaves_nothing_behind(folder):
    """Lightning asks for len(loader) batches and never meets the StopIteration."""
    builder = PretrainPipelineBuilder(
        folder, 4, "cpu", plain_view(), num_threads=1, encode_indexes_into_labels=True
    )
    loader = pretrain_loader(builder, 4, conversion_map=builder.conversion_map)
    for _ in range(5):
        iterator = iter(loader)
        seen = [i for _ in range(len(loader)) for i in next(iterator)[0].tolist()]
        assert len(set(seen)) == 12


def test_an_image_is_decoded_once_for_all_crops(folder, monkeypatch):
    calls = []
    decode = fn.decoders.image
    monkeypatch.setattr(fn.decoders, "image", lambda *a, **k: calls.append(1) or decode(*a, **k))
    started(PretrainPipelineBuilder(folder, 4, "cpu", views((ENTRY, 2), (ENTRY, 6))))
    assert len(calls) == 1


def test_without_shuffling_the_order_is_the_files(folder):
    builder = PretrainPipelineBuilder(
        folder, 5, "cpu", plain_view(), random_shuffle=False, num_threads=1,
        encode_indexes_into_labels=True,
    )  # fmt: skip
    loader = pretrain_loader(builder, 5, conversion_map=builder.conversion_map)
    for _ in range(2):
        assert [i for batch in loader for i in batch[0].tolist()] == list(range(15))


def test_without_labels(tmp_path):
    write_folder(tmp_path / "flat", classes=("",), per_class=6, size=32)
    builder = PretrainPipelineBuilder(
        tmp_path / "flat", 3, "cpu", plain_view(), no_labels=True, num_threads=1,
        encode_indexes_into_labels=True,
    )  # fmt: skip
    loader = pretrain_loader(builder, 3, conversion_map=builder.conversion_map)
    batches = list(loader)
    assert sorted(i for batch in batches for i in batch[0].tolist()) == list(range(6))
    assert all((batch[2] == -1).all() for batch in batches)


def test_fraction_matches_the_torch_loaders(folder):
    from solo.data.pretrain_dataloader import prepare_datasets

    builder = PretrainPipelineBuilder(folder, 3, "cpu", plain_view(), data_fraction=0.4)
    torch_half = prepare_datasets("custom", None, folder, data_fraction=0.4)
    assert list(zip(builder.files, builder.labels, strict=True)) == torch_half.samples
    assert np.bincount(builder.labels).tolist() == [2, 2, 2]
    with pytest.raises(ConfigError, match=r"data.fraction=2 is out of range"):
        PretrainPipelineBuilder(folder, 3, "cpu", plain_view(), data_fraction=2)


def test_a_given_split_decides_the_files(folder):
    options = {"data_fraction": 0.4, "num_threads": 1}
    drawn = NormalPipelineBuilder(folder, 3, "cpu", **options)
    assert [drawn.split.per_class[str(label)] for label in range(3)] == [2, 2, 2]
    whole = NormalPipelineBuilder(folder, 3, "cpu", num_threads=1)
    assert whole.split is None
    assert drawn.files == [whole.files[i] for i in drawn.split.indices]
    other = dataclasses.replace(drawn.split, indices=[7, 1])
    again = NormalPipelineBuilder(folder, 3, "cpu", split=other, **options)
    assert again.files == [whole.files[7], whole.files[1]]
    module = module_of(
        ClassificationDALIDataModule, folder, folder, batch_size=2, split=other, data_fraction=0.4
    )
    assert sum(len(labels) for _, labels in module.train_dataloader()) == 2
    assert splits.of_data(module) == other
    with pytest.raises(DataError, match=r"data\.fraction=0\.5"):
        NormalPipelineBuilder(folder, 3, "cpu", split=other, data_fraction=0.5)


@pytest.mark.parametrize("cls", [NormalPipelineBuilder, CustomNormalPipelineBuilder])
def test_classification_batches(folder, cls):
    train = Wrapper(
        15,
        pipelines=started(cls(str(folder), 4, "cpu", num_threads=1)),
        output_map=["x", "label"],
        reader_name="Reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
    )
    batches = list(train)
    assert len(batches) == len(train) == 3
    assert all(x.shape == (4, 3, 224, 224) and y.shape == (4,) for x, y in batches)
    assert y_is_true(batches)


def y_is_true(batches):
    """Targets fit the colours of the images (flat colours survive crops and flips)."""
    pairs = [(c, t) for x, y in batches for c, t in zip(colours(x), y.tolist(), strict=True)]
    return all(abs(c - expected_colour(round(c / 10))) <= 3 and t == round(c / 10) // 5
               for c, t in pairs)  # fmt: skip


@pytest.mark.parametrize(("batch_size", "num_shards"), [(4, 1), (15, 1), (7, 2), (4, 2), (2, 4)])
def test_validation_sees_every_image_once(folder, batch_size, num_shards):
    loaders = [val_loader(folder, batch_size, rank, num_shards) for rank in range(num_shards)]
    for _ in range(2):
        batches = [batch for loader in loaders for batch in loader]
        assert all(len(y) for _, y in batches)
        assert sorted(c for x, _ in batches for c in colours(x)) == pytest.approx(
            [expected_colour(i) for i in range(15)], abs=3
        )
        assert y_is_true(batches)


def test_validation_begins_anew_after_a_sanity_check(folder):
    loader = val_loader(folder, 4)
    iterator = iter(loader)
    next(iterator), next(iterator)
    assert [y.tolist() for _, y in loader] == [[0] * 4, [0, 1, 1, 1], [1, 1, 2, 2], [2] * 3]


def test_iterator_is_dalis_for_readers_that_do_not_pad(folder):
    from nvidia.dali import pipeline_def
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def graph():
        return fn.readers.file(file_root=str(folder), name="Reader")[1]

    options = {"reader_name": "Reader", "last_batch_policy": LastBatchPolicy.DROP}
    ours = TempDALIGenericIterator(graph(), ["label"], auto_reset=True, **options)
    theirs = DALIGenericIterator(graph(), ["label"], auto_reset=True, **options)
    for _ in range(3):
        got, expected = ([b[0]["label"].flatten().tolist() for b in it] for it in (ours, theirs))
        assert got == expected
