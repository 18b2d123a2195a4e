# SPDX-License-Identifier: MIT
"""Distillation: as a method, beside a method, and of an encoder into itself."""

import pytest
import timm
import torch

from solo.checkpoints import load_run
from solo.errors import ConfigError
from solo.methods import METHODS
from solo.methods.teacher import Teacher, stage_features, stages
from solo.programs.pretrain import pretrain
from tests.methods.helpers import tiny_batch, tiny_cfg
from tests.programs.conftest import pretrained
from tests.programs.tiny import PRETRAIN, config

assert pretrained  # a fixture


def distilling(teacher, **changes):
    kwargs = {"teacher": str(teacher), **changes.pop("kwargs", {})}
    base = {**PRETRAIN, "method": "distill", "method_kwargs": kwargs, "name": "student"}
    base.pop("momentum")
    return config(base, **changes)


def test_an_encoder_distilled_into_itself_stays(pretrained, cwd_tmp):
    """Loss 0 up to batch norm, which the student keeps in training mode: in eval mode exactly."""
    cfg = tiny_cfg("distill", {"teacher": str(pretrained[0])}, data__dataset="digits")
    cfg.backbone.kwargs.width = 2
    model = METHODS["distill"](cfg)
    model.backbone.load_state_dict(load_run(pretrained[0])[0].state_dict())
    model.eval()
    model.log_dict = lambda *args, **kwargs: None
    model.log = lambda *args, **kwargs: None
    loss = model.training_step(tiny_batch(size=32), 0)
    grads = torch.autograd.grad(loss, list(model.backbone.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in grads if g is not None) < 1e-5


def test_the_teacher_is_no_part_of_the_module(pretrained):
    cfg = tiny_cfg("distill", {"teacher": str(pretrained[0])})
    model = METHODS["distill"](cfg)
    assert isinstance(model.projector, torch.nn.Linear)  # width 4 against width 2
    assert not any("teacher" in key for key in model.state_dict())
    known = {id(p) for p in model.parameters()}
    assert not any(id(p) in known for p in model.teacher.net.parameters())
    assert not model.teacher.net.training


def test_the_teacher_sees_its_own_statistics(pretrained):
    images = torch.rand(3, 3, 32, 32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)
    teacher = Teacher(str(pretrained[0]), None, mean, std)
    plain = Teacher(str(pretrained[0]))
    args = load_run(pretrained[0])[1]
    from solo.data.catalogue import pretrain_statistics

    theirs = pretrain_statistics(args["data"]["dataset"], args["augmentations"][0])

    def normalised(statistics):
        m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in statistics)
        return (images - m) / s

    assert torch.allclose(teacher(normalised((mean, std))), plain(normalised(theirs)), atol=1e-4)


def test_teachers_out_of_timm_and_files_see_their_own_statistics(tmp_path, monkeypatch):
    images, mine = torch.rand(2, 3, 160, 160), ((0.1, 0.2, 0.3), (0.5, 0.4, 0.3))
    known = timm.get_pretrained_cfg("test_vit.r160_in1k")
    look = {"mean": [0.3, 0.3, 0.4], "std": [0.2, 0.3, 0.2]}
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.pth")

    def normalised(mean, std):
        m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
        return (images - m) / s

    file = Teacher(str(tmp_path / "vit.pth"), {"name": "test_vit", **look}, *mine)
    monkeypatch.setattr("solo.methods.teacher.init_encoder", lambda *args: None)  # no network
    hub = Teacher("timm:test_vit.r160_in1k", None, *mine)
    for teacher, theirs in ((file, look.values()), (hub, (known.mean, known.std))):
        with torch.no_grad():
            wanted = teacher.net(normalised(*theirs))
        assert torch.allclose(teacher(normalised(*mine)), wanted, atol=1e-4)


FAMILIES = ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224")


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_of_families(name):
    options = {"img_size": 32} if name.startswith("vit") else {}
    net = timm.create_model(name, num_classes=0, **options).eval()
    assert len(stages(net)) == 4
    if name == "vit_tiny_patch16_224":
        with stage_features(net) as read, torch.no_grad():
            net(torch.zeros(2, 3, 32, 32))
            assert [tuple(f.shape) for f in read()] == [(2, 192)] * 4


def test_recovery_keeps_the_masks(pretrained, cwd_tmp):
    pretrain(config(PRETRAIN, sparse={"name": "random", "final": 0.5}, name="sparse"))
    run = "trained_models/mocov2plus/0"
    cfg = distilling(pretrained[0], init_from=run, sparse={"name": "fixed"}, kwargs={"stages": 1.0})
    pretrain(cfg)
    before, after = load_run(run)[0], load_run("trained_models/distill/0")[0]
    mask, new = before.layer4[1].conv2.mask, after.layer4[1].conv2
    assert torch.equal(new.mask, mask)
    assert not new.weight[~mask].any()
    assert not torch.equal(new.weight, before.layer4[1].conv2.weight)
    with pytest.raises(ConfigError, match="this one is dense: set init_from to a sparse run"):
        pretrain(distilling(pretrained[0], sparse={"name": "fixed"}, name="dense"))


def test_a_term_beside_another_method(pretrained, cwd_tmp):
    section = {"teacher": str(pretrained[0]), "weight": 2.0}
    trainer = pretrain(config(PRETRAIN, distill=section, name="with"))
    assert "distill/cosine" in trainer.callback_metrics
    wide = config(PRETRAIN, distill=section, name="wide", backbone__kwargs__width=4)
    with pytest.raises(ConfigError, match="puts out 16 features and the encoder 32"):
        pretrain(wide)
    with pytest.raises(ConfigError, match=r"distill\.teacher is missing"):
        pretrain(config(PRETRAIN, distill={"weight": 1.0}))
    with pytest.raises(ConfigError, match=r"weigth.*weight"):
        pretrain(config(PRETRAIN, distill={**section, "weigth": 1.0}))


def test_mistakes_are_named(pretrained, tmp_path, cwd_tmp):
    with pytest.raises(ConfigError, match=r"loss=cosin is unknown.*'cosine'"):
        pretrain(distilling(pretrained[0], kwargs={"loss": "cosin"}))
    weights = tmp_path / "weights.pth"
    torch.save(load_run(pretrained[0])[0].state_dict(), weights)
    with pytest.raises(ConfigError, match="Add teacher_backbone"):
        pretrain(distilling(weights))


@pytest.fixture
def cwd_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
