# SPDX-License-Identifier: MIT
"""Reading weight files: layouts, damage, code in a file."""

import functools
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from solo.checkpoints.exporting import export_encoder
from solo.checkpoints.files import write_tensors
from solo.checkpoints.loading import load_encoder, read_args, read_checkpoint
from solo.errors import CheckpointError
from tests.checkpoints.lightning_files import ARGS, encoder, lightning_file, prefixed, same

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_extensions")]


def test_reads_lightning_plain_and_safetensors(tmp_path, run, trained):
    assert read_checkpoint(run)["global_step"] == 7
    torch.save(trained.state_dict(), tmp_path / "plain.pth")
    assert set(read_checkpoint(tmp_path / "plain.pth")) == {"state_dict"}
    torch.save({"model": trained.state_dict(), "arch": "x"}, tmp_path / "model.pt")
    assert read_checkpoint(str(tmp_path / "model.pt"))["arch"] == "x"
    export_encoder(trained, tmp_path / "e.safetensors")
    for name in ("plain.pth", "model.pt", "e.safetensors"):
        fresh = encoder()
        load_encoder(fresh, tmp_path / name)
        assert same(fresh, trained)


def test_missing_file_names_the_nearest(run):
    with pytest.raises(CheckpointError, match=r"no such checkpoint\. Did you mean 'tiny-0-ep=3"):
        read_checkpoint(run.with_name("tiny-0-ep=4.ckpt"))
    with pytest.raises(CheckpointError, match=r"no such checkpoint\. Did you mean 'byol'"):
        read_checkpoint(run.parents[2] / "byoll" / "0" / "tiny-0-ep=3.ckpt")
    with pytest.raises(CheckpointError, match=r"nearest folder that exists is '.*0'"):
        read_checkpoint(run.with_name("zzz"))


def test_folder_names_a_file_in_it(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder.*Name the file, such as '.*ep=3\.ckpt"):
        read_checkpoint(run.parents[1])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"There is no \.ckpt file in it"):
        read_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_truncated(run, part):
    data = run.read_bytes()
    run.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(CheckpointError, match=r"truncated or damaged.*Copy it again"):
        read_checkpoint(run)


def test_not_a_checkpoint(tmp_path):
    text = tmp_path / "notes.ckpt"
    text.write_text("hello, these are no weights")
    with pytest.raises(CheckpointError, match="not a checkpoint of PyTorch"):
        read_checkpoint(text)
    for name, content in (("list.pt", [1, 2]), ("empty.pt", {}), ("args.pt", {"epoch": 1})):
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match="no weights in this file"):
            read_checkpoint(tmp_path / name)
    (tmp_path / "x.safetensors").write_bytes(b"\x08\0\0\0")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_checkpoint(tmp_path / "x.safetensors")


# what solo-learn's SimSiam leaves in `lr_schedulers`
def simsiam_schedulers(net):
    from solo.utils.lr_scheduler import LinearWarmupCosineAnnealingLR

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    next(iter(net.parameters())).grad = torch.ones_like(next(iter(net.parameters())))
    optimizer.step()
    scheduler = LinearWarmupCosineAnnealingLR(optimizer, warmup_epochs=2, max_epochs=4)
    get_lr = functools.partial(_static_lr, get_lr=scheduler.get_lr, indexes=[0], lrs=[0.1])
    return [{"warmup_epochs": 2, "last_epoch": 1, "get_lr": get_lr}]


def _static_lr(get_lr, indexes, lrs):
    raise RuntimeError("nothing in a checkpoint may run")


def test_simsiam_file_with_a_pickled_partial(tmp_path, trained):
    path = lightning_file(
        tmp_path / "ssl.ckpt",
        prefixed(trained, "backbone."),
        lr_schedulers=simsiam_schedulers(encoder()),
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint["lr_schedulers"] == [{"warmup_epochs": 2, "last_epoch": 1}]
    fresh = encoder()
    load_encoder(fresh, path)
    assert same(fresh, trained)


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (exec, (f"open({str(self.path)!r}, 'w').close()",))


def test_code_in_a_file_does_not_run(tmp_path, trained):
    path = lightning_file(
        tmp_path / "evil.ckpt",
        prefixed(trained, "backbone."),
        callbacks={_Evil: [_Evil(tmp_path / "hacked"), 1]},
        hyper_parameters=SimpleNamespace(a=1),
    )
    checkpoint = read_checkpoint(path)
    assert not (tmp_path / "hacked").exists()
    assert checkpoint["callbacks"] == {}
    assert "hyper_parameters" not in checkpoint
    assert torch.equal(checkpoint["state_dict"]["backbone.bn1.weight"], trained.bn1.weight)


def test_args(run, tmp_path):
    assert read_args(run) == read_args(run.parent) == ARGS
    assert read_args(tmp_path / "x.ckpt") is None
    (run.parent / "args.json").write_text('{"name": ')
    with pytest.raises(CheckpointError, match=r"args\.json: damaged"):
        read_args(run)


def test_the_same_content_is_the_same_file(tmp_path):
    """In whichever order the metadata came; the library alone writes another one each time."""
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2)}
    about = {f"key {i}": f'{i} é "quoted"' for i in range(8)}
    files = [tmp_path / f"{i}.safetensors" for i in range(6)]
    for i, file in enumerate(files):
        write_tensors(file, tensors, dict(sorted(about.items(), reverse=i % 2 == 0)))
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as opened:
        assert opened.metadata() == about
        assert torch.equal(opened.get_tensor("b"), tensors["b"])
