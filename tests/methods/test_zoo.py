# SPDX-License-Identifier: MIT
"""What every method of the zoo must do: keys, gradients, momentum, training, resuming."""

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from solo.methods import METHODS
from solo.methods.base import BaseMomentumMethod
from tests.methods.helpers import tiny_batch, tiny_loaders, tiny_trainer
from tests.methods.zoo_cases import CASES, build

pytestmark = pytest.mark.unit
NAMES = sorted(CASES)
MOMENTUM = [name for name in NAMES if issubclass(METHODS[name], BaseMomentumMethod)]


class Seeded(pl.Callback):
    """Makes each step's random numbers its own, so that a resumed run draws the same."""

    def on_train_epoch_start(self, trainer, module):
        torch.manual_seed(100 + trainer.current_epoch)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        torch.manual_seed(200 + trainer.global_step)


def start(model):
    """Make what training would make at its start, without a trainer."""
    if hasattr(model, "kmeans_iters"):
        model.assignments = torch.randint(0, 5, (3, 4))
        model.local_memory_index = torch.zeros(16, dtype=torch.long)
        model.local_memory_embeddings = torch.zeros(2, 16, 8)
    elif hasattr(model, "get_assignments"):
        model.on_train_start()
    return model


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_keys(name):
    momentum = ("backbone.", "classifier.", "momentum_backbone.")
    keys = {key for key in build(name).state_dict() if not key.startswith(momentum)}
    assert keys == CASES[name].keys


@pytest.mark.parametrize("name", NAMES)
def test_configuration_may_be_checked_twice_and_names_its_mistakes(name):
    cfg = CASES[name].cfg(name)
    method = METHODS[name]
    once = OmegaConf.to_container(method.add_and_assert_specific_cfg(cfg))
    assert OmegaConf.to_container(method.add_and_assert_specific_cfg(cfg)) == once
    wrong = max(method.KWARGS, key=len) + "x" if method.KWARGS else "proj_output_dum"
    cfg.method_kwargs[wrong] = 3
    if not method.KWARGS:  # close to nothing: a warning that it has no effect
        with pytest.warns(UserWarning, match=wrong):
            method.add_and_assert_specific_cfg(cfg)
        return
    with pytest.raises(AssertionError, match=wrong):
        method.add_and_assert_specific_cfg(cfg)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups_cover_what_is_trained(name):
    model = build(name)
    grouped = {id(p) for group in model.learnable_params for p in group["params"]}
    frozen = ("momentum_", "prototypes.") if name == "deepclusterv2" else ("momentum_",)
    wanted = {id(p) for n, p in model.named_parameters() if not n.startswith(frozen)}
    assert grouped == wanted


@pytest.mark.parametrize("name", NAMES)
def test_forward(name):
    model = build(name)
    views = tiny_batch()[1]
    out = model(views[0])
    assert {k: tuple(v.shape) for k, v in out.items() if k not in ("logits", "feats")} == CASES[
        name
    ].forward
    assert out["logits"].shape == (4, 7)
    model.eval()
    assert set(model(views[0])) == {"logits", "feats"} | (set(out) - {"mask", "pred"})


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_reach_the_right_modules(name):
    model = start(build(name))
    model.training_step(tiny_batch(large=CASES[name].large), 0).backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {"backbone", "classifier", *CASES[name].trained}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    for module in ("backbone", *CASES[name].trained):
        grads = [p.grad for p in getattr(model, module).parameters() if p.grad is not None]
        assert max(g.abs().max() for g in grads) > 0, module


@pytest.mark.parametrize("name", NAMES)
def test_trains_logs_and_resumes_exactly(name, tmp_path):
    """Two epochs in one go equal one epoch, a checkpoint, and one resumed epoch."""

    def fit(model, **kwargs):
        ckpt = kwargs.pop("ckpt_path", None)
        trainer = tiny_trainer(callbacks=[Seeded()], **kwargs)
        trainer.fit(model, *tiny_loaders(large=CASES[name].large), ckpt_path=ckpt)
        return trainer

    torch.manual_seed(0)
    whole = build(name, max_epochs=2)
    initial = {k: v.clone() for k, v in whole.state_dict().items()}

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    trainer = tiny_trainer(callbacks=[Seeded(), Save()])
    trainer.fit(whole, *tiny_loaders(large=CASES[name].large))
    for metric in (*CASES[name].metrics, "train_class_loss"):
        assert torch.isfinite(trainer.callback_metrics[f"{metric}_epoch"]), metric
    assert "val_acc1" in trainer.callback_metrics

    torch.manual_seed(1)
    resumed = build(name, max_epochs=2)
    fit(resumed, ckpt_path=tmp_path / "half.ckpt")
    after = resumed.state_dict()
    assert set(after) == set(whole.state_dict())
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, msg=key)
    changed = [k for k, v in initial.items() if not torch.equal(v, after[k])]
    assert any(k.startswith("backbone.") for k in changed)

    reloaded = METHODS[name].load_from_checkpoint(
        tmp_path / "half.ckpt", cfg=CASES[name].cfg(name), weights_only=True
    )
    saved = torch.load(tmp_path / "half.ckpt")["state_dict"]
    for key, value in reloaded.state_dict().items():
        assert torch.equal(value, saved[key])


@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum_update(name):
    model = build(name)
    before = [[p.clone() for p in momentum.parameters()] for _, momentum in model.momentum_pairs]
    copies = [child for child, _ in model.named_children() if child.startswith("momentum_")]
    assert len(before) == len(copies) - ("momentum_classifier" in copies)
    trainer = tiny_trainer(max_steps=1, max_epochs=-1, limit_val_batches=0)
    trainer.fit(model, *tiny_loaders(large=CASES[name].large))
    for (online, momentum), old in zip(model.momentum_pairs, before, strict=True):
        for o, m, was in zip(online.parameters(), momentum.parameters(), old, strict=True):
            torch.testing.assert_close(m, 0.9 * was + 0.1 * o)
            assert not m.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_fast_dev_run_with_two_samples_per_batch(name):
    kwargs = {"whitening_size": 2} if name == "wmse" else {}
    model = build(name, method_kwargs=kwargs, optimizer__batch_size=2)
    trainer = tiny_trainer(fast_dev_run=True)
    trainer.fit(model, *tiny_loaders(n=2, large=CASES[name].large))
    assert trainer.global_step == 1


@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_images(name):
    if name == "supcon":
        with pytest.raises(AssertionError, match="supcon learns from labels"):
            build(name, data__no_labels=True)
        return
    model = start(build(name))
    batch = tiny_batch(large=CASES[name].large)
    batch[-1] = torch.full((4,), -1)
    loss = model.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or not p.grad.any() for p in model.classifier.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(name):
    """bfloat16 activations meet float32 queues, memories and centres."""
    model = build(name)
    trainer = tiny_trainer(precision="bf16-mixed", limit_val_batches=0)
    trainer.fit(model, *tiny_loaders(steps=2, large=CASES[name].large))
    assert all(torch.isfinite(v) for v in trainer.callback_metrics.values())
    assert all(v.dtype != torch.bfloat16 for v in model.state_dict().values())
