# SPDX-License-Identifier: MIT
"""Loading encoders strictly, masks in checkpoints, giving encoders away."""

import json

import pytest
import torch
from torch import nn

import solo
from solo import extensions
from solo.backbones import BACKBONES
from solo.checkpoints import load_pretrained
from solo.checkpoints.exporting import export_encoder
from solo.checkpoints.loading import encoder_state, load_encoder, read_checkpoint
from solo.errors import CheckpointError
from tests.checkpoints.lightning_files import ARGS, encoder, lightning_file, prefixed, same

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_extensions")]


# -- encoder states ------------------------------------------------------------------------------


def test_online_and_momentum(run, trained):
    checkpoint = read_checkpoint(run)
    assert set(encoder_state(checkpoint)) == set(trained.state_dict())
    fresh = encoder()
    load_encoder(fresh, run, encoder="momentum")
    assert same(fresh, encoder(2))
    with pytest.raises(CheckpointError, match=r"encoder='momentun': Did you mean 'momentum'"):
        encoder_state(checkpoint, "momentun")


def test_old_prefix(trained):
    state = prefixed(trained, "encoder.") | prefixed(encoder(2), "momentum_encoder.")
    state |= {"transformer_encoder.layers.0.norm1.weight": torch.ones(2)}
    for which, source in (("online", trained), ("momentum", encoder(2))):
        fresh = encoder()
        load_encoder(fresh, {"state_dict": state}, which)
        assert same(fresh, source)


def test_no_such_encoder(trained):
    online = {"state_dict": prefixed(trained, "backbone.")}
    with pytest.raises(CheckpointError, match=r"no momentum encoder.*Use the online encoder"):
        encoder_state(online, "momentum")
    with pytest.raises(CheckpointError, match="heads but no encoder"):
        encoder_state({"state_dict": {"projector.0.weight": torch.ones(2)}})


def test_prefixes_of_ddp_and_compile(trained):
    state = prefixed(trained, "module.backbone._orig_mod.")
    assert set(encoder_state({"state_dict": state})) == set(trained.state_dict())


def test_swin_of_old_timm():
    kwargs = {"img_size": 32, "window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 32}
    net = BACKBONES["swin_tiny"](None, **kwargs, num_heads=(1, 1, 1, 1))
    old = {}
    for key, value in net.state_dict().items():
        parts = key.split(".")
        if "downsample" in key:
            parts[1] = str(int(parts[1]) - 1)
        old["backbone." + ".".join(parts)] = value + 1
    old["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4)
    old["backbone.layers.0.blocks.0.attn_mask"] = torch.zeros(4, 4)
    assert "backbone.layers.3.downsample.norm.weight" not in old
    before = {key: value.clone() for key, value in net.state_dict().items()}
    load_encoder(net, {"state_dict": old})
    assert all(torch.equal(net.state_dict()[key], before[key] + 1) for key in before)


# -- loading -------------------------------------------------------------------------------------


def test_report(run, trained):
    report = load_encoder(encoder(), run)
    assert report.matched == len(trained.state_dict())
    assert report.method == "byol"
    assert report.left_out == ()
    assert "loaded all 120 tensors" in str(report)
    assert "of the online encoder of byol" in str(report)


def test_classifier_of_a_foreign_file_is_left_out(trained):
    state = {**trained.state_dict(), "fc.weight": torch.zeros(3, 32), "fc.bias": torch.zeros(3)}
    report = load_encoder(encoder(), {"state_dict": state})
    assert report.left_out == ("fc.bias", "fc.weight")
    with pytest.raises(CheckpointError, match="1 tensors of the file are not in the encoder: fc"):
        load_encoder(encoder(), {"state_dict": {**prefixed(trained, "backbone."), "backbone.fc.x": state["fc.bias"]}})  # fmt: skip  # noqa: E501


def test_another_width_and_another_depth(run):
    with pytest.raises(CheckpointError) as error:
        load_encoder(encoder(backbone={"name": "resnet18", "kwargs": {"width": 8}}), run)
    text = str(error.value)
    assert "shapes differ: conv1.weight is (4, 3, 3, 3) in the file and (8, 3, 3, 3) here" in text
    assert "backbone.name=resnet18 and backbone.kwargs={'width': 4} (its args.json)" in text
    other = encoder(backbone={"name": "resnet50", "kwargs": {"width": 4}})
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="tensors of the encoder are not in the file: "):
        load_encoder(other, run)
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())
    with pytest.raises(CheckpointError, match="this is another architecture"):
        load_encoder(other, read_checkpoint(run))


def test_another_stem(run):
    with pytest.raises(CheckpointError, match=r"stems differ.*Set data\.dataset"):
        load_encoder(encoder(data={"dataset": "imagenet100"}), run)


def test_one_missing_tensor_is_an_error(trained):
    state = prefixed(trained, "backbone.")
    del state["backbone.layer3.0.bn2.running_var"]
    with pytest.raises(CheckpointError, match=r"1 tensors .* not in the file: layer3\.0\.bn2\.run"):
        load_encoder(encoder(), {"state_dict": state})


def test_position_embedding_of_another_image_size():
    kwargs = {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 4}
    small = BACKBONES["vit_tiny"](None, img_size=8, **kwargs)
    large = BACKBONES["vit_tiny"](None, img_size=16, **kwargs)
    with pytest.raises(CheckpointError, match=r"img_size and patch_size as they were"):
        load_encoder(large, {"state_dict": small.state_dict()})


def test_vit_of_another_method_has_other_heads(tmp_path):
    kwargs = {"depth": 1, "img_size": 32}
    args = {**ARGS, "method": "mae", "backbone": {"name": "vit_tiny", "kwargs": kwargs}}
    net = BACKBONES["vit_tiny"]("mae", **kwargs)
    path = lightning_file(tmp_path / "x.ckpt", prefixed(net, "backbone."), args)
    with pytest.raises(CheckpointError, match=r"12 attention heads.*has 3.*pretrain_method: mae"):
        load_encoder(BACKBONES["vit_tiny"]("simclr", **kwargs), path)
    load_encoder(BACKBONES["vit_tiny"]("mocov3", **kwargs), path)


# -- masks and extensions ------------------------------------------------------------------------


class Masks(extensions.Extension):
    """Places masks as buffers, as sparse_ext does."""

    sections = ("sparse",)

    def rebuild(self, backbone, state, checkpoint):
        for key in state:
            if key.endswith(".mask"):
                module = backbone.get_submodule(key.removesuffix(".mask"))
                module.register_buffer("mask", torch.ones_like(module.weight).bool())
        return backbone

    def training_state(self, state):
        return {key for key in state if key.endswith(".score")}

    def folded(self, state):
        masks = {key: value for key, value in state.items() if key.endswith(".mask")}
        weights = {key: value for key, value in state.items() if key not in masks}
        for key, mask in masks.items():
            weights[key[:-4] + "weight"] = weights[key[:-4] + "weight"] * mask
        return weights

    def misfit(self, missing, unexpected):
        ours = not unexpected and all(key.endswith(".mask") for key in missing)
        return "The checkpoint is dense and the encoder is masked." if ours else ""

    def describe(self, backbone):
        masks = [b for name, b in backbone.named_buffers() if name.endswith("mask")]
        return {"kept": float(sum(mask.sum() for mask in masks))} if masks else {}


def masked_state(trained):
    state = trained.state_dict()
    mask = torch.zeros_like(state["layer1.0.conv1.weight"], dtype=torch.bool)
    mask[0] = True
    state |= {"layer1.0.conv1.mask": mask, "layer1.0.conv1.score": torch.ones(2)}
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"] * mask
    return state, mask


def test_masks_that_nobody_places(trained):
    state, _ = masked_state(trained)
    del state["layer1.0.conv1.score"]
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.mask\n.*and more.*register"):
        load_encoder(encoder(), {"state_dict": state})


def test_masks_that_an_extension_places(trained):
    extensions.register(Masks())
    state, mask = masked_state(trained)
    report = load_encoder(encoder(), {"state_dict": state})
    assert torch.equal(report.backbone.layer1[0].conv1.mask, mask)
    assert report.left_out == ("layer1.0.conv1.score",)
    assert report.figures == {"kept": 36.0}
    assert "measured: kept 36" in str(report)
    # dense weights do not go into a masked encoder
    with pytest.raises(CheckpointError, match=r"checkpoint is dense and the encoder is masked"):
        load_encoder(report.backbone, {"state_dict": trained.state_dict()})


def test_training_state_of_the_encoder_need_not_be_in_the_file(trained):
    extensions.register(Masks())
    net = encoder()
    net.layer1[0].conv1.register_buffer("score", torch.ones(3))
    load_encoder(net, {"state_dict": trained.state_dict()})
    assert torch.equal(net.conv1.weight, trained.conv1.weight)


def test_masks_of_sparse_ext(trained):
    from sparse_ext.extension import register

    register()
    state, mask = masked_state(trained)
    report = load_encoder(encoder(), {"state_dict": state})
    assert torch.equal(report.backbone.layer1[0].conv1.mask, mask)
    assert report.figures["sparsity"] == pytest.approx(0.75)
    assert "sparsity 0.75, " in str(report)
    assert "kept_weights 36" in str(report)


# -- giving away ---------------------------------------------------------------------------------


def test_export_to_torchvision_and_timm(tmp_path):
    import timm
    import torchvision
    from safetensors.torch import load_file

    net = encoder(data={"dataset": "imagenet"}, backbone={"name": "resnet18"}).eval()
    path = export_encoder(net, tmp_path / "deep" / "r18.safetensors")
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(load_file(path), strict=True)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(x), net(x))
    theirs = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(path))
    torch.testing.assert_close(theirs.eval()(x), net(x))


def test_export_folds_masks_and_leaves_training_state(tmp_path, trained):
    from safetensors import safe_open
    from safetensors.torch import load_file

    extensions.register(Masks())
    state, mask = masked_state(trained)
    state["layer1.0.conv1.weight"] = trained.layer1[0].conv1.weight.detach() + 1
    state = {f"backbone.{key}": value for key, value in state.items()}
    run = lightning_file(tmp_path / "run.ckpt", state)
    path = export_encoder(run, tmp_path / "e.safetensors")
    exported = load_file(path)
    assert set(exported) == set(trained.state_dict())
    assert (exported["layer1.0.conv1.weight"] != 0).equal(mask)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["backbone"]) == ARGS["backbone"]
    momentum = {"state_dict": prefixed(trained, "momentum_backbone.")}
    export_encoder(momentum, tmp_path / "m.safetensors", encoder="momentum")
    vit = BACKBONES["vit_tiny"]("mae", depth=1).to(memory_format=torch.channels_last)
    with safe_open(export_encoder(vit, tmp_path / "v.safetensors"), framework="pt") as file:
        assert file.metadata()["num_heads"] == "12"


def test_load_pretrained_from_a_run(run, trained):
    for where in (run, run.parent, str(run)):
        net = load_pretrained(where)
        assert same(net, trained)
        assert not net.training
    assert same(solo.load_pretrained(run, encoder="momentum"), encoder(2))
    (run.parent / "args.json").unlink()
    with pytest.raises(CheckpointError, match=r"no args\.json beside it"):
        load_pretrained(run)


def zoo(folder, monkeypatch, **model):
    (folder / "manifest.json").write_text(
        json.dumps({"models": [{"name": "byol-tiny", "command": "python main", **model}]})
    )
    monkeypatch.setenv("SOLO_ZOO", str(folder))


def test_load_pretrained_from_the_zoo(run, trained, monkeypatch):
    from solo.checkpoints.zoo import sha256

    folder = run.parents[1]
    checkpoint = {"path": f"0/{run.name}", "sha256": sha256(run)}
    zoo(folder, monkeypatch, checkpoint=checkpoint)
    assert same(load_pretrained("byol-tiny"), trained)
    zoo(folder, monkeypatch, checkpoint={**checkpoint, "sha256": "0" * 64})
    with pytest.raises(CheckpointError, match="sha256 differs"):
        load_pretrained("byol-tiny")
    zoo(folder, monkeypatch, checkpoint={**checkpoint, "path": "gone.ckpt"})
    with pytest.raises(CheckpointError, match="check out zoo/ again"):
        load_pretrained("byol-tiny")
    zoo(folder, monkeypatch, checkpoint=None)
    with pytest.raises(CheckpointError, match=r"No checkpoint ships.*Train it with: python main"):
        load_pretrained("byol-tiny")
    with pytest.raises(CheckpointError, match=r"neither a model of the zoo.*'byol-tiny'"):
        load_pretrained("byol-tni")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_pretrained("somewhere/else.ckpt")


# -- files of other libraries --------------------------------------------------------------------


def _behind(prefix, net, **more):
    return {f"{prefix}{key}": value for key, value in net.state_dict().items()} | more


FC = {"fc.weight": torch.zeros(5, 32), "fc.bias": torch.zeros(5)}
FILES = {
    "ddp": lambda net: {"state_dict": _behind("module.", net) | prefix_of("module.", FC)},
    "moco": lambda net: {
        "state_dict": _behind("module.encoder_q.", net)
        | prefix_of("module.encoder_q.", {"fc.0.weight": torch.zeros(3, 32)})
        | _behind("module.encoder_k.", encoder(9))
        | {"module.queue": torch.zeros(3, 4)}
    },
    "mocov3": lambda net: {
        "state_dict": _behind("module.base_encoder.", net)
        | _behind("module.momentum_encoder.", encoder(9))
        | {"module.predictor.0.weight": torch.zeros(3, 3)}
    },
    "dino": lambda net: {
        "teacher": _behind("backbone.", net, **{"head.mlp.0.weight": torch.zeros(3, 32)}),
        "student": _behind("module.backbone.", encoder(9)),
        "epoch": 3,
    },
    "nested": lambda net: {"model": {"module": _behind("trunk.", net)}},
}


def prefix_of(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_libraries_load_behind_their_prefixes(tmp_path, trained, kind):
    torch.save(FILES[kind](trained), tmp_path / "file.pth")
    fresh = encoder(7)
    assert not same(fresh, trained)
    load_encoder(fresh, tmp_path / "file.pth")
    assert same(fresh, trained)


def test_what_no_prefix_helps_says_what_was_looked_for(tmp_path):
    torch.save({"state_dict": {"a.b.weight": torch.zeros(3)}}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"file\.pth: no tensor.*such as conv1\.weight"):
        load_encoder(encoder(), tmp_path / "file.pth")
