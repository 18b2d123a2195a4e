# SPDX-License-Identifier: MIT
"""Pruning of whole encoders: budgets met, runs that open anywhere, interrupted ones that go on."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from solo.checkpoints import load_run
from solo.data.classification_dataloader import folder_transform
from solo.errors import CheckpointError, ConfigError, DataError
from sparse_ext.masks.granularity import parse
from sparse_ext.masks.masked_layers import masked_layers
from sparse_ext.prune import encoder as pruning
from sparse_ext.prune import program
from sparse_ext.prune.__main__ import main
from sparse_ext.prune.encoder import Store, estimate_batch_norms, prune_layers, sparse_copy
from sparse_ext.prune.plan import METHODS, Settings, make_plan
from sparse_ext.prune.source import Source, open_source
from tests.export.nets import encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Unlabelled and labelled images with some structure."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(14):
            coarse = generator.integers(0, 255, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((40, 40)).save(root / name / f"{i}.png")
    return root


def batches(n=24, size=32):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(n, 3, 6, 6, generator=generator)
    return list(nn.functional.interpolate(coarse, size=size, mode="bilinear").split(8))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("granularity", "sparsity"), [("element", 0.7), ("2:4", 0.5), ("block8", 0.6), ("filter", 0.5)]
)
def test_budgets_and_patterns(method, granularity, sparsity):
    net = encoder(width=16).eval()
    settings = Settings(method, (sparsity,), granularity)
    plan = make_plan(net, batches(), settings)
    (layers,) = prune_layers(net, plan, batches())
    sparse = sparse_copy(net, layers)
    kept = sum(int(layer.mask.sum()) for layer in layers.values())
    total = sum(layer.mask.numel() for layer in layers.values())
    units = {name: plan.granularity.n_groups(tuple(p.mask.shape)) for name, p in layers.items()}
    if granularity in ("element", "2:4"):
        assert kept == round((1 - sparsity) * total)
    for name, layer in masked_layers(sparse).items():
        assert not layer.weight[~layer.mask].any()
        assert parse(granularity).fits(layer.mask)
        whole = int(parse(granularity).groups_kept(layer.mask).sum())
        assert whole == plan.goals[0].kept[name] <= units[name]
    for name, module in net.named_modules():  # the source stays as it was
        if name in layers:
            assert module.weight.all()


@pytest.mark.parametrize("granularity", ["element", "2:4", "block8"])
def test_sparsegpt_is_never_worse_than_magnitude(granularity):
    net = encoder(width=16).eval()
    sparsity = 0.5 if granularity == "2:4" else 0.8
    common = {"sparsities": (sparsity,), "granularity": granularity, "allocation": "lamp"}
    found = {}
    for method in ("sparsegpt", "wanda"):
        plan = make_plan(net, batches(), Settings(method, **common))
        found[method] = prune_layers(net, plan, batches())[0]
    plan = make_plan(net, batches(), Settings("sparsegpt", **common))
    seen = pruning.moments(net, plan.layers, batches(), 24)
    for name, layer in found["sparsegpt"].items():
        weight = plan.layers[name].weight.detach()
        mask = pruning.by_score(
            plan.layers[name], plan.granularity, weight.abs(), plan.goals[0].kept[name]
        ).mask
        rows = [m.movedim(1, -1).reshape(1, len(m), -1) for m in (weight, weight * mask)]
        from sparse_ext.prune.sparsegpt import relative_error

        plain = relative_error(*rows, seen[name].second)
        assert layer.error <= plain + 1e-6, name


def test_vision_transformers_and_grouped_convolutions():
    for name in ("vit_tiny_patch16_224", "regnetx_002"):
        options = {"img_size": 32} if name.startswith("vit") else {}
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=0, **options).eval()
        plan = make_plan(net, batches(8), Settings(sparsities=(0.5,)))
        (layers,) = prune_layers(net, plan, batches(8))
        sparse = sparse_copy(net, layers)
        assert torch.isfinite(sparse(batches(8)[0])).all()
        errors = [layer.error for layer in layers.values() if layer.error == layer.error]
        assert errors
        assert max(errors) < 1


def test_batch_norms_are_those_of_the_images():
    net = encoder(width=4).eval()
    images = batches()
    estimate_batch_norms(net, images)
    sums = torch.stack([net.conv1(batch).mean((0, 2, 3)) for batch in images]).mean(0)
    assert torch.allclose(net.bn1.running_mean, sums, atol=1e-5)
    assert not net.bn1.training
    assert net.bn1.momentum == 0.1


def test_finished_layers_are_not_pruned_again(tmp_path, monkeypatch):
    net = encoder(width=8).eval()
    plan = make_plan(net, batches(), Settings(sparsities=(0.5, 0.8)))
    straight = prune_layers(net, plan, batches())
    store = Store(tmp_path, plan, net, batches())

    def stop(name):
        if name == "layer2.0.conv1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_layers(net, plan, batches(), store, stop)
    pruned = []
    one = pruning._one
    monkeypatch.setattr(pruning, "_one", lambda *args: pruned.append(args[1]) or one(*args))
    again = prune_layers(net, plan, batches(), Store(tmp_path, plan, net, batches()))
    assert "layer1.0.conv1" not in pruned
    for first, second in zip(straight, again, strict=True):
        for name, layer in first.items():
            assert torch.equal(layer.weight, second[name].weight)
            assert torch.equal(layer.mask, second[name].mask)
    other = copy.deepcopy(net)
    other.conv1.weight.data += 1
    brighter = [batch + 1 for batch in batches()]
    for strange in (Store(tmp_path, plan, other, batches()), Store(tmp_path, plan, net, brighter)):
        assert strange.read("layer1.0.conv1", plan.goals) is None


def test_a_family_in_one_pass(pretrained, folder, tmp_path):
    settings = Settings(sparsities=(0.5, 0.8))
    request = program.Request(str(pretrained[0]), folder, tmp_path / "out", settings, count=20)
    lines = []
    rows = program.run(request, lines.append)
    assert [round(row["sparsity"], 2) for row in rows] == [0.5, 0.8]
    assert (tmp_path / "out" / "curve.png").stat().st_size > 5000
    curve = json.loads((tmp_path / "out" / "curve.json").read_text())
    assert [row["sparsity"] for row in curve["sparse"]] == [row["sparsity"] for row in rows]
    written = [tmp_path / "out" / name / "pruned.json" for name in ("0.5", "0.8")]
    less, more = (json.loads(file.read_text())["layers"].values() for file in written)
    errors = [[layer["output_error"] or 0 for layer in layers] for layers in (less, more)]
    assert 0 < sum(errors[0]) < sum(errors[1])
    assert not (tmp_path / "out" / ".layers").exists()
    net, args = load_run(tmp_path / "out" / "0.8")
    assert args["pruned"]["method"] == "sparsegpt"
    kept = [layer.mask.float().mean() for layer in masked_layers(net).values()]
    assert min(kept) < 0.3
    assert "kNN top-1" in lines[-2]
    alone = program.Request(
        str(pretrained[0]), folder, tmp_path / "one", Settings(sparsities=(0.8,)), count=20
    )
    program.run(alone, lines.append)
    single = load_run(tmp_path / "one")[0].state_dict()
    assert all(torch.equal(value, single[key]) for key, value in net.state_dict().items())


def test_images_of_any_size_are_shown_as_the_run_was_trained(tmp_path):
    (tmp_path / "dark").mkdir()
    for i, shape in enumerate([(40, 60), (32, 32), (20, 24), (32, 48)]):
        Image.new("RGB", shape, (51, 51, 51)).save(tmp_path / "dark" / f"{i}.png")
    view = {"crop_size": 32, "mean": [0.1] * 3, "std": [0.5] * 3}
    for dataset, level in (("custom", 0.2), ("cifar10", (0.2 - 0.4914) / 0.247)):
        args = {"data": {"dataset": dataset}, "augmentations": [view]}
        source = Source(nn.Identity(), args, 32, "")
        request = program.Request("", tmp_path, tmp_path / "o", Settings(), count=2)
        for part in program.calibration_and_unseen(request, source):
            (images,) = part.batches
            assert images.shape == (2, 3, 32, 32)
            assert torch.allclose(images[:, 0], torch.tensor(level), atol=1e-5)


def test_weights_of_timm_see_images_as_timm_trained_them(monkeypatch):
    monkeypatch.setattr("sparse_ext.prune.source.init_encoder", lambda *args: "")
    source = open_source("timm:test_vit.r160_in1k")
    known = timm.get_pretrained_cfg("test_vit.r160_in1k")
    image = folder_transform(source.args)(Image.new("RGB", (200, 200), (51, 51, 51)))
    assert image.shape == known.input_size == (3, source.size, source.size)
    levels = (0.2 - torch.tensor(known.mean)) / torch.tensor(known.std)
    assert torch.allclose(image.amax((1, 2)), levels, atol=1e-5)


def test_mistakes_are_named(pretrained, folder, tmp_path):
    def run(source=str(pretrained[0]), data=folder, out=tmp_path / "o", **settings):
        request = program.Request(source, data, out, Settings(**settings), count=8)
        program.run(request, lambda line: None)

    with pytest.raises(DataError, match=r"--data .*nowhere: there is no such folder"):
        run(data=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no image in it"):
        run(data=tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"0\.8 cannot be reached with --granularity 2:4"):
        run(granularity="2:4")
    before = (pretrained[0] / "args.json").read_text()
    with pytest.raises(ConfigError, match=r"is the folder of the run 'tiny', .* overwritten"):
        run(out=pretrained[0])
    assert (pretrained[0] / "args.json").read_text() == before
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        run(out=pretrained[1])
    with pytest.raises(ConfigError, match=r"--sparsity 0\.5,0\.5: each gets a folder"):
        run(sparsities=(0.5, 0.5))
    with pytest.raises(ConfigError, match=r"--method wnda is unknown.*'wanda'"):
        run(method="wnda")
    with pytest.raises(ConfigError, match="block8 instead of block8-merged"):
        run(granularity="block8-merged")
    torch.save(encoder(width=4).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"Name it: --backbone resnet50"):
        run(source=str(tmp_path / "weights.pth"))
    run(sparsities=(0.5,))
    with pytest.raises(CheckpointError, match="is sparse already: prune the dense encoder"):
        run(source=str(tmp_path / "o"))


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    def interrupted(request):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "run", interrupted)
    arguments = [str(tmp_path), "--data", "digits", "--out", str(tmp_path / "out")]
    assert main(arguments) == 130
    assert "The same command goes on from here." in capsys.readouterr().err
