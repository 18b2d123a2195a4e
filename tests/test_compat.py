# SPDX-License-Identifier: MIT
"""What stands on private names of torch and Lightning: fails when the library changes it."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import solo.compat
import sparse_ext.compat
from solo import compat
from solo.checkpoints.restricted_pickle import pickle_module
from sparse_ext import compat as sparse_compat

pytestmark = pytest.mark.unit


def lists():
    rng = np.random.default_rng(0)
    arrays = [[rng.normal(size=n).astype(np.float32) for n in (3, 5)] for _ in range(2)]
    return arrays, [[torch.from_numpy(a.copy()) for a in part] for part in arrays]


@pytest.mark.parametrize(
    ("operation", "by_numpy"),
    [
        (lambda x, y: compat.foreach_add(x, y, alpha=2.0), lambda a, b: a + 2 * b),
        (lambda x, y: compat.foreach_add_(x, y, alpha=-1.0) or x, lambda a, b: a - b),
        (lambda x, y: compat.foreach_lerp_(x, y, 0.25) or x, lambda a, b: a + 0.25 * (b - a)),
        (lambda x, y: compat.foreach_mul_(x, y) or x, lambda a, b: a * b),
        (lambda x, _: compat.foreach_norm(x), lambda a, _: np.linalg.norm(a)),
        (lambda x, _: sparse_compat.foreach_abs(x), lambda a, _: np.abs(a)),
    ],
)
def test_operations_on_lists(operation, by_numpy):
    (a, b), (x, y) = lists()
    for found, one, other in zip(operation(x, y), a, b, strict=True):
        assert found.numpy() == pytest.approx(by_numpy(one, other), rel=1e-6)


def test_modes_are_left_for_a_while():
    with sparse_compat.FakeTensorMode():
        fake = torch.ones(2)
        with sparse_compat.without_modes():
            assert torch.ones(2).numpy().sum() == 2
        assert type(torch.ones(2)) is type(fake) is not torch.Tensor


def test_what_is_compiled_is_told_before_it_is_called():
    in_place, call = nn.Linear(2, 2), nn.Linear(2, 2)
    in_place.compile()
    compat.call_instead(call, lambda x: x)
    found = [in_place, call, torch.compile(nn.Linear(2, 2)), nn.Linear(2, 2)]
    assert [sparse_compat.is_compiled(m) for m in found] == [True, True, True, False]


def test_weight_norm():
    v, g = torch.randn(3, 4), torch.rand(3, 1)
    expected = g.numpy() * v.numpy() / np.linalg.norm(v.numpy(), axis=1, keepdims=True)
    assert compat.weight_norm(v, g, 0).numpy() == pytest.approx(expected, rel=1e-5)


def test_pickled_tensors_and_parameters_name_these_makers(tmp_path):
    torch.save([torch.ones(2), nn.Parameter(torch.ones(2))], tmp_path / "a.pt")
    tensor, parameter = torch.load(
        tmp_path / "a.pt", weights_only=False, pickle_module=pickle_module
    )
    assert torch.equal(tensor, torch.ones(2))
    assert torch.equal(parameter, torch.ones(2))


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_who_asks_for_a_process_group_is_told_that_there_is_none(group):
    from lightning.fabric.utilities.distributed import _distributed_is_initialized

    assert dist.is_initialized()
    assert _distributed_is_initialized()
    with pytest.raises(ZeroDivisionError), compat.single_process():  # noqa: PT012
        assert not dist.is_initialized()
        assert not _distributed_is_initialized()
        1 / 0
    assert dist.is_initialized()


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.due = []

    def training_step(self, batch, index):
        self.due.append(compat.loggers_are_due(self.trainer))
        loss = self.layer(batch).sum()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder, **options):
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_loggers_are_due_when_lightning_writes_a_row(tmp_path):
    logger = CSVLogger(tmp_path)
    module = Tiny()
    run = trainer(tmp_path, max_steps=6, log_every_n_steps=2, logger=logger)
    run.fit(module, torch.utils.data.DataLoader(torch.ones(12, 2), 2))
    rows = Path(logger.log_dir, "metrics.csv").read_text().splitlines()[1:]
    assert module.due == [False, True] * 3
    assert len(rows) == 3


def test_a_callback_that_is_put_first_acts_first(tmp_path):
    seen = []

    class Says(Callback):
        def __init__(self, name):
            self.name = name

        def setup(self, trainer, pl_module, stage):
            if self.name == "last":
                sparse_compat.put_first(trainer, self)

        def on_train_start(self, trainer, pl_module):
            seen.append(self.name)

    run = trainer(tmp_path, max_steps=1, logger=False, callbacks=[Says("first"), Says("last")])
    run.fit(Tiny(), torch.utils.data.DataLoader(torch.ones(4, 2), 2))
    assert seen == ["last", "first"]


def test_a_module_calls_another_function_and_keeps_its_own_call():
    module = nn.Linear(1, 1)
    own = compat.plain_call(module)
    compat.call_instead(module, lambda x: x + 1)
    assert module(torch.zeros(1)) == 1
    assert torch.equal(own(torch.zeros(1)), module.bias)
    assert list(module.state_dict()) == ["weight", "bias"]


def test_a_module_knows_its_trainer(tmp_path):
    module, run = Tiny(), trainer(tmp_path, logger=False)
    compat.set_trainer(module, run)
    assert module.trainer is run


def test_writes_are_counted():
    tensor = torch.zeros(2, dtype=torch.bool)
    before = compat.writes(tensor)
    tensor[0] = True
    assert compat.writes(tensor) > before


def test_ddp_leaves_named_buffers_alone(group):
    module = nn.BatchNorm1d(2)
    sparse_compat.keep_from_ddp(module, ["running_mean"])
    sparse_compat.keep_from_ddp(module, ["running_var"])
    ddp = DistributedDataParallel(module)
    assert ddp.parameters_to_ignore == {"running_mean", "running_var"}


def test_hooks_before_loading_are_found():
    module = nn.Linear(1, 1)

    def hook(*_):
        pass

    module.register_load_state_dict_pre_hook(hook)
    assert sparse_compat.hooks_before_loading(module) == [hook]


def test_fused_optimizers_say_that_they_unscale():
    parameters = [nn.Parameter(torch.ones(1))]
    assert sparse_compat.unscales_by_itself(torch.optim.SGD(parameters, 0.1, fused=True))
    assert not sparse_compat.unscales_by_itself(torch.optim.SGD(parameters, 0.1))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
def test_all_batch_norms_have_one_base(kind):
    assert issubclass(kind, sparse_compat.BatchNorm)


def test_trees_are_mapped_and_flattened():
    tree = [torch.ones(1), {"a": (torch.ones(1), 2)}]
    assert sparse_compat.tree_map(lambda x: x * 2, tree)[1]["a"][1] == 4
    assert len(sparse_compat.tree_leaves(tree)) == 3


def test_the_module_behind_compile_is_found():
    module = nn.Linear(1, 1)
    assert sparse_compat.unwrapped(torch.compile(module)) is module
    assert sparse_compat.unwrapped(module) is module


@pytest.mark.parametrize("package", [solo, sparse_ext])
def test_private_names_of_the_libraries_are_used_here_only(package):
    """`torch._x`, `trainer._x` and imports of `_x` from torch or Lightning."""
    folder = Path(package.__file__).parent
    for path in folder.rglob("*.py"):
        if path.name == "compat.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("torch", "lightning")
            ):
                private = [n.name for n in node.names if n.name.startswith("_")]
                private += [p for p in node.module.split(".") if p.startswith("_")]
                assert not private, (path, private)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                owner = node.value.id if isinstance(node.value, ast.Name) else None
                own = node.attr.startswith("__")
                assert own or owner not in ("torch", "trainer", "dist"), (path, node.attr)
