# SPDX-License-Identifier: MIT
"""Full fine-tuning on VOC 2007: its data, its figures, tickets on a small VOC folder."""

import numpy as np
import pytest
import torch

from solo.data import classification_dataloader, pretrain_dataloader
from solo.errors import ConfigError, DataError
from solo.programs.pretrain import pretrain
from solo.utils.voc_svm import mean_average_precision
from sparse_ext.tickets import run_folder
from sparse_ext.tickets.extension import register
from sparse_ext.tickets.program import tickets
from tests.tickets.test_voc import CLASSES, write_voc
from tests.tickets.tiny import config, sweep_section

pytestmark = pytest.mark.unit


def voc(root, **overrides):
    """Overrides that fine-tune on the VOC folder below `root`."""
    paths = {"data__train_path": str(root), "data__val_path": str(root)}
    fixed = {"method": "multilabel", "data__dataset": "voc07", "optimizer__batch_size": 6}
    return {**fixed, **paths, "limit_val_batches": 1.0, **overrides}


# -- data --------------------------------------------------------------------------------------


def test_both_splits_are_read_and_a_part_keeps_labels_with_their_images(tmp_path):
    root = write_voc(tmp_path)
    train = pretrain_dataloader.prepare_datasets("voc07", np.asarray, root)
    index, image, labels = train[3]
    assert (len(train), index, labels.tolist()) == (12, 3, [1, 0])
    assert image[..., 2].mean() > 150
    _, val = classification_dataloader.prepare_datasets("voc07", None, None, root, root)
    assert val.ids[0] == "000012"
    part = pretrain_dataloader.prepare_datasets("voc07", None, root, data_fraction=0.5)
    assert len(part) == 6
    for name, row in zip(part.ids, part.labels, strict=True):
        assert row.tolist() == train.labels[int(name)].tolist()


# -- programs ----------------------------------------------------------------------------------


def test_logged_precision_is_that_of_the_test_set(cwd):
    root = write_voc(cwd)
    cfg = config(**voc(root, max_epochs=1, optimizer__batch_size=5))
    trainer = pretrain(cfg)
    model = trainer.lightning_module.eval()
    _, T_val = classification_dataloader.prepare_transforms("voc07", cfg.augmentations[0].crop_size)
    _, test = classification_dataloader.prepare_datasets("voc07", None, T_val, root, root)
    images, labels = zip(*test, strict=True)
    with torch.no_grad():
        scores = model(torch.stack(images))["logits"].numpy()
    assert scores.shape == (12, len(CLASSES))
    expected = 100 * mean_average_precision(scores, torch.stack(labels).numpy())
    assert trainer.callback_metrics["val_map"].item() == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """VOC folder, and a sweep of an encoder for images that are not CIFAR's."""
    register()
    root = write_voc(tmp_path_factory.mktemp("voc"))
    return root, tickets(
        config(sweep_section(dir=str(root / "before"), rewind_samples=12), **voc(root))
    )


def test_pruned_before_the_transfer(swept, cwd):
    root, source = swept
    run = tickets(config(retrain={"source": str(source.folder), "init": "final"}, **voc(root)))
    assert len(run.finished()) == 3
    for level, before in zip(run.finished(), source.finished(), strict=True):
        assert level.done["checksum"] == before.done["checksum"]
        assert 0 <= level.done["metrics"]["val_map"] <= 100
        final = run_folder.load_weights(level.final)
        assert not any(final[f"{name}.weight"][~mask].any() for name, mask in level.masks().items())


def test_pruned_during_the_transfer(swept, cwd):
    root, source = swept
    start = source.level(0).final
    run = tickets(config(sweep_section(start=str(start), rewind_samples=0), **voc(root)))
    assert [level.number for level in run.finished()] == [0, 1, 2]
    dense, rewound = run_folder.load_weights(start), run_folder.load_weights(run.level(0).rewind)
    assert torch.equal(dense["layer1.0.conv1.weight"], rewound["layer1.0.conv1.weight"])
    assert run.level(2).masks().density == pytest.approx(0.64, abs=1e-3)


# -- mistakes ----------------------------------------------------------------------------------


def test_other_methods_and_other_folders_are_refused(cwd):
    with pytest.raises(ConfigError, match="voc07"):
        pretrain(config(**voc(write_voc(cwd), method="rotnet")))
    with pytest.raises(DataError, match="is no VOC 2007 folder"):
        pretrain(config(**voc(cwd / "nowhere")))
