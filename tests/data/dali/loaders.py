# SPDX-License-Identifier: MIT
"""DALI pipelines and loaders of the tests: views, marks of images, a trainer that is not there."""

import pytest

pytest.importorskip("nvidia.dali")

from nvidia.dali.plugin.base_iterator import LastBatchPolicy

from solo.data.catalogue import IMAGENET_MEAN, IMAGENET_STD
from solo.data.dali_dataloader import (
    NormalPipelineBuilder,
    PretrainWrapper,
    Wrapper,
    build_transform_pipeline_dali,
)
from solo.data.pretrain_dataloader import FullTransformPipeline, NCropAugmentation
from tests.data.conftest import augmentation
from tests.data.dali.test_dali_ops import PLAIN

ENTRY = augmentation(equalization={"prob": 0.0}, solarization={"prob": 0.1})


def views(*entries):
    """A FullTransformPipeline with one pipeline per (entry, number of crops)."""
    return FullTransformPipeline(
        [
            NCropAugmentation(build_transform_pipeline_dali("custom", e, "cpu"), n)
            for e, n in entries
        ]
    )


def plain_view():
    """One untouched view."""
    return views((PLAIN, 1))


def started(builder, **options):
    """The pipeline as solo-learn's data module asks for it."""
    pipe = builder.pipeline(
        batch_size=builder.batch_size,
        num_threads=builder.num_threads,
        device_id=builder.device_id,
        seed=builder.seed,
        **options,
    )
    pipe.build()
    return pipe


def pretrain_loader(builder, batch_size, n_views=1, **kwargs):
    return PretrainWrapper(
        model_batch_size=batch_size,
        model_rank=builder.shard_id,
        model_device="cpu",
        dataset_size=15,
        pipelines=started(builder),
        output_map=[*(f"large{i}" for i in range(n_views)), "label"],
        reader_name="Reader",
        last_batch_policy=LastBatchPolicy.DROP,
        auto_reset=True,
        **kwargs,
    )


def colours(view):
    """Mean red value of each image, in grey levels: the mark that `write_folder` left."""
    red = view[:, 0].mean((1, 2)) * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    return (255 * red).round().int().tolist()


def expected_colour(index):
    return 10 * index % 250


def val_loader(folder, batch_size, shard_id=0, num_shards=1):
    builder = NormalPipelineBuilder(
        folder, batch_size, "cpu", validation=True, shard_id=shard_id, num_shards=num_shards,
        num_threads=1,
    )  # fmt: skip
    return Wrapper(
        15,
        pipelines=started(builder),
        output_map=["x", "label"],
        reader_name="Reader",
        last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )


class FakeTrainer:
    local_rank, current_epoch = 0, 0

    def __init__(self, rank=0, world_size=1):
        self.global_rank, self.world_size = rank, world_size


def module_of(cls, *args, rank=0, world_size=1, **kwargs):
    module = cls("custom", *args, dali_device="cpu", num_workers=1, **kwargs)
    module.trainer = FakeTrainer(rank, world_size)
    module.setup()
    return module
