# SPDX-License-Identifier: MIT
"""What single methods do besides their loss: freezing, clipping, memories, checkpoints, ranks."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from solo.errors import ConfigError
from solo.methods import METHODS
from solo.methods.dino import DINOHead
from solo.methods.heads import WeightNormLinear
from solo.methods.mae import MAEDecoder
from tests.methods.helpers import tiny_batch, tiny_loaders, tiny_trainer
from tests.methods.zoo_cases import CASES, build

pytestmark = pytest.mark.unit


def test_weight_norm_linear_equals_torchs_former_weight_norm():
    ours = WeightNormLinear(4, 6, learn_norm=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.nn.utils.weight_norm(nn.Linear(4, 6, bias=False))
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight_g", "weight_v"]
    state = {"weight_g": torch.rand(6, 1) + 0.5, "weight_v": torch.randn(6, 4)}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(5, 4)
    for layer in (ours, theirs):
        (layer(x) ** 2).sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    copy.deepcopy(ours)
    fixed = WeightNormLinear(4, 6)
    torch.testing.assert_close(fixed.weight.norm(dim=1), torch.ones(6))
    assert [p.requires_grad for p in fixed.parameters()] == [False, True]


def test_dino_head():
    head = DINOHead(5, 6, use_bn=True, num_layers=3, hidden_dim=7, bottleneck_dim=4)
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert not head.mlp[0].bias.any()
    assert 0.01 < head.mlp[3].weight.std() < 0.03
    assert isinstance(DINOHead(5, 6, num_layers=1).mlp, nn.Linear)
    x = torch.randn(8, 5)
    assert head(x).abs().max() <= 1 + 1e-6  # both factors have norm 1
    assert DINOHead(5, 6, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_dino_clips_and_freezes(monkeypatch):
    model = build("dino")
    model.training_step(tiny_batch(), 0).backward()
    grads = {n: p.grad.clone() for n, p in model.backbone.named_parameters()}
    head = {n: p.grad.clone() for n, p in model.head.mlp.named_parameters()}
    assert model.head.last_layer.weight_v.grad is not None
    model.on_after_backward()
    clipped = 0
    for name, p in model.backbone.named_parameters():
        norm = grads[name].norm()
        torch.testing.assert_close(p.grad, grads[name] * min(1, 0.5 / (float(norm) + 1e-6)))
        clipped += bool(norm > 0.5)
    assert clipped > 0
    assert all(torch.equal(p.grad, head[n]) for n, p in model.head.mlp.named_parameters())
    assert model.head.last_layer.weight_v.grad is None
    model.training_step(tiny_batch(), 0).backward()
    monkeypatch.setattr(type(model), "current_epoch", 1)
    model.on_after_backward()
    assert model.head.last_layer.weight_v.grad is not None
    model.on_train_epoch_start()
    assert model.dino_loss_func.epoch == 1


def test_dino_refuses_small_crops_that_would_not_count():
    with pytest.raises(ConfigError, match=r"local_crops=False: dino.* the 2 small crops"):
        build("dino", data__num_small_crops=2, method_kwargs={"local_crops": False})
    build("dino", method_kwargs={"local_crops": False})


def test_swav_freezes_prototypes_in_the_first_epochs(monkeypatch):
    model = build("swav")
    model.on_train_start()
    for epoch, frozen in ((0, True), (1, False)):
        monkeypatch.setattr(type(model), "current_epoch", epoch)
        model.training_step(tiny_batch(), 0).backward()
        model.on_after_backward()
        assert (model.prototypes.weight_v.grad is None) == frozen


@pytest.mark.parametrize("batches", [1, 5])
def test_swav_queue_shorter_than_or_no_multiple_of_the_batch(batches):
    model = build("swav", method_kwargs={"queue_size": 6})
    model.on_train_start()
    for i in range(batches):
        model.training_step(tiny_batch(seed=i, n=8 if i == 0 else 4), 0)
    assert model.queue.shape == (2, 6, 8)
    torch.testing.assert_close(model.queue.norm(dim=-1), torch.ones(2, 6))
    without = build("swav", method_kwargs={"queue_size": 0})
    without.on_train_start()
    without.training_step(tiny_batch(), 0)
    assert "queue" not in without.state_dict()


def test_deepcluster_clusters_the_memory_of_the_last_epoch():
    model = build("deepclusterv2")
    seen = []

    def keep(idxs, z, batch_idx):
        seen.append((model.current_epoch, idxs, [v.detach() for v in z]))
        METHODS["deepclusterv2"].update_memory_banks(model, idxs, z, batch_idx)

    model.update_memory_banks = keep
    trainer = tiny_trainer(limit_val_batches=0)
    trainer.fit(model, *tiny_loaders())
    assert model.assignments.shape == (3, 16)
    first = {int(i): z[0][k] for e, idxs, z in seen if e == 0 for k, i in enumerate(idxs)}
    features = torch.stack([first[i] for i in range(16)])
    for head in (0, 2):  # crops alternate over the heads: these two use the first crop
        nearest = (features @ model.prototypes[head].weight.T).argmax(1)
        assert torch.equal(model.assignments[head], nearest)
    for prototype in model.prototypes:
        torch.testing.assert_close(prototype.weight.norm(dim=1), torch.ones(5))
        assert not prototype.weight.requires_grad


def test_all4one_needs_a_width_that_its_attention_heads_share():
    with pytest.raises(ConfigError, match=r"proj_output_dim=12 must be a multiple of 8"):
        build("all4one", method_kwargs={"proj_output_dim": 12})


@pytest.mark.parametrize("prototypes", [[3, 4], []])
def test_deepcluster_needs_prototypes_of_one_number(prototypes):
    with pytest.raises(ConfigError, match=r"num_prototypes=.*: every clustering needs the same"):
        build("deepclusterv2", method_kwargs={"num_prototypes": prototypes})


def test_deepcluster_on_a_part_of_the_data_and_with_too_many_prototypes():
    model = build("deepclusterv2")
    tiny_trainer(limit_train_batches=2, limit_val_batches=0).fit(model, *tiny_loaders())
    assert (model.assignments[:, :8] >= 0).all()
    assert (model.assignments[:, 8:] == -1).all()
    model = build("deepclusterv2", method_kwargs={"num_prototypes": [50]})
    with pytest.raises(ConfigError, match="num_prototypes"):
        tiny_trainer(limit_val_batches=0).fit(model, *tiny_loaders())


def test_mae_decoder_puts_patches_back_into_place():
    decoder = MAEDecoder(6, 8, depth=1, num_heads=2, num_patches=4, patch_size=2)
    decoder.decoder_blocks = nn.Identity()  # then every patch is decoded by itself
    assert not decoder.decoder_pos_embed.requires_grad
    tokens = torch.randn(1, 3, 6)
    kept, ids_restore = [3, 1], torch.tensor([[2, 1, 3, 0]])  # shuffled order: 3, 1, 0, 2
    out = decoder(tokens, ids_restore)
    assert out.shape == (1, 4, 12)
    for patch in range(4):
        if patch in kept:
            x = decoder.decoder_embed(tokens[0, 1 + kept.index(patch)])
        else:
            x = decoder.mask_token[0, 0]
        x = x + decoder.decoder_pos_embed[0, 1 + patch]
        torch.testing.assert_close(out[0, patch], decoder.decoder_pred(decoder.decoder_norm(x)))


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("mae", {"mask_ratio": 1.0}, "mask_ratio=1.0 must be between 0 and 1"),
        ("wmse", {"whitening_size": 8}, r"whitening_size=8 must not exceed .*batch_size=4"),
    ],
)
def test_bad_values(name, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build(name, method_kwargs=kwargs)


def test_mae_needs_a_vit():
    cfg = CASES["mae"].cfg("mae")
    cfg.backbone = {"name": "resnet18", "kwargs": {}}
    with pytest.raises(AssertionError, match="mae needs a vision transformer"):
        METHODS["mae"](cfg)


def test_wmse_parts_must_divide_the_batch():
    model = build("wmse", method_kwargs={"whitening_size": 3})
    with pytest.raises(ConfigError, match="whitening_size=3 must divide the batch of 4"):
        model.training_step(tiny_batch(), 0)


def test_recipe_keys_without_effect_are_accepted_with_a_warning():
    ignored = {"base_tau_momentum": 0.99, "final_tau_momentum": 1.0, "momentum_classifier": None}
    with pytest.warns(UserWarning, match="base_tau_momentum has no effect on ressl"):
        build("ressl", method_kwargs=ignored)


def test_all4one_attends_to_both_neighbour_sequences_first():
    """The order of solo-learn, in which dropout draws."""
    model = build("all4one")
    seen = []
    model._attend = lambda sequence: seen.append(sequence) or sequence[:, 0]
    z = [torch.randn(3, model.queue.shape[1]) for _ in range(2)]
    neighbours = [torch.randn(3, 5, model.queue.shape[1]) for _ in range(2)]
    model._attention_loss(z, neighbours)
    assert [any(s is n for n in neighbours) for s in seen] == [True, True, False, False]
    assert torch.equal(seen[0], neighbours[0])
    assert torch.equal(seen[3][:, 1:], neighbours[1][:, :4])


def test_all4one_small_helpers(tmp_path, monkeypatch):
    model = build("all4one")
    assert model.off_diagonal(torch.arange(9).view(3, 3)).tolist() == [1, 2, 3, 5, 6, 7]
    lr = [g["lr"] for g in model.learnable_params if g["name"] == "transformer_encoder"]
    assert lr == [0.1]
    monkeypatch.chdir(tmp_path)
    model.save_NN(torch.arange(2), torch.tensor([4, 5]), torch.tensor([[1], [0]]))
    with open("NNIDX/FirstNN", "rb") as file:
        assert pickle.load(file) == [[0, 1], [4, 5], [[1], [0]]]


def worker(rank, folder):
    """Train one epoch with two ranks, save, resume in fresh modules."""
    import os

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = build("swav")
    model.on_train_start()
    model.queue.fill_(rank + 1)
    checkpoint = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    if rank == 0:
        torch.save(checkpoint, f"{folder}/swav.ckpt")
    dist.barrier()
    loaded = torch.load(f"{folder}/swav.ckpt")
    fresh = build("swav")
    fresh.on_load_checkpoint(loaded)
    fresh.load_state_dict(loaded["state_dict"])
    assert "queue" not in dict(fresh.named_buffers())  # out of sight of DDP's broadcast
    fresh.on_train_start()
    torch.save((fresh.queue.shape, fresh.queue.unique()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_each_rank_gets_its_own_queue_back(tmp_path):
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        shape, values = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert shape == (2, 4, 8)
        assert values.tolist() == [rank + 1]


def test_late_buffers_of_another_size_start_afresh():
    model = build("swav", method_kwargs={"queue_size": 12})
    model.on_train_start()
    other = build("swav")
    other.load_state_dict(model.state_dict())
    other.on_train_start()
    assert other.queue.shape == (2, 8, 8)
