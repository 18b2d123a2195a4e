# SPDX-License-Identifier: MIT
"""A checkpoint of every method goes through the evaluations without further flags."""

import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from solo.programs.evaluation import Features, extract_features, load_method
from solo.programs.linear import linear
from solo.programs.pretrain import pretrain
from solo.utils.knn import WeightedKNNClassifier
from sparse_ext.config.sections import METHODS as ALL
from sparse_ext.cost.of_checkpoint import measure
from sparse_ext.extension import register
from tests.programs.tiny import LINEAR, PRETRAIN, config, run_of

METHODS = [name for name in ALL if name != "fixed"]  # which starts from a sparse encoder

pytestmark = pytest.mark.slow

# SDCLR prunes one view of a shared encoder
HEADS = {"proj_hidden_dim": 8, "proj_output_dim": 8, "temperature": 0.2}
SHARED = {"sdclr": {"method": "simclr", "method_kwargs": HEADS}}


def unpacked(bits, shape):
    """A mask from its bits, eight to a byte, the first one lowest."""
    one = np.unpackbits(bits.numpy(), count=math.prod(shape), bitorder="little")
    return torch.from_numpy(one).reshape(shape)


@pytest.mark.parametrize("name", METHODS)
def test_linear_finetuning_and_neighbours(name, tmp_path, monkeypatch):
    register()
    monkeypatch.chdir(tmp_path)
    own = SHARED.get(name, {})
    pretrain(config(PRETRAIN, sparse={"name": name}, max_epochs=2, limit_val_batches=0, **own))
    run, checkpoint = run_of(tmp_path, own.get("method", "mocov2plus"))
    before = measure(checkpoint)
    assert OmegaConf.load(run / "args.json").sparse.name == name

    options = {"pretrained_feature_extractor": str(checkpoint)}
    options["pretrain_method"] = own.get("method", "mocov2plus")
    frozen = linear(config(LINEAR, **options))
    assert 0 <= float(frozen.callback_metrics["val_acc1"]) <= 100
    state = torch.load(checkpoint)["state_dict"]
    for key, value in frozen.model.backbone.state_dict().items():
        if key.endswith("weight"):
            trained = state[f"backbone.{key}"]
            if name == "sr_ste":  # its pruned weights live on, and are evaluated as zero
                bits = state.get(f"backbone.{key[:-6]}mask_packed")
                trained = trained if bits is None else trained * unpacked(bits, trained.shape)
            assert torch.equal(value, trained), key

    tuned = linear(config(LINEAR, finetune=True, checkpoint__dir="tuned", **options))
    (file,) = (tmp_path / "tuned" / "linear" / "0").glob("*.ckpt")
    after = measure(file)
    assert after.prunable.sparsity == before.prunable.sparsity
    assert [x.kept for x in after.layers if x.prunable] == [
        x.kept for x in before.layers if x.prunable
    ]
    trained = tuned.model.backbone.layer4[1].conv2.weight
    assert not torch.equal(trained, state["backbone.layer4.1.conv2.weight"])

    features = Features(load_method(run))
    images, labels = torch.rand(12, 3, 32, 32), torch.arange(12) % 3
    feats, _, targets = extract_features([(images, labels)], features)
    knn = WeightedKNNClassifier(k=1, distance_fx="euclidean")
    knn.update(train_features=feats, train_targets=targets)
    knn.update(test_features=feats, test_targets=targets)
    assert knn.compute()[0] == pytest.approx(100)  # every image is its own neighbour
