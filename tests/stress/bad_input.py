# SPDX-License-Identifier: MIT
"""Inputs that are wrong in a way that a key's type and limits do not show, one by one.

    python -m tests.stress.bad_input [NAME ...]

Right is: exit code 2 and one sentence that names the culprit; never a traceback, never success.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.stress import farm
from tests.stress.programs import COMMANDS, PRETRAIN, READ_A_RUN, TINY, prepare

KNN, UMAP, EXPORT = "main_knn.py", "main_umap.py", "-m sparse_ext.export"
COST, ACCELERATOR = "-m sparse_ext.cost", "-m sparse_ext.cost.accelerator"
RUN = "source/trained_models/mocov2plus/0"
SIMCLR = [
    "method=simclr",
    "++method_kwargs={proj_hidden_dim: 8, proj_output_dim: 4, temperature: 0.2}",
]
BYOL = [
    "method=byol",
    "++method_kwargs={proj_hidden_dim: 8, proj_output_dim: 4, pred_hidden_dim: 8}",
]
ADAMW = ["optimizer.name=adamw"]
FOLDERS = ["data.dataset=custom", "++data.train_path=images", "++data.val_path=null"]
SYNCCP = ["+sparse=synccp", "sparse.update_period=2"]

Change = Callable[[Path], None]


def nan_weights(folder: Path) -> None:
    """The encoder of the run becomes not a number."""

    def change(content: dict) -> None:
        content["state_dict"]["backbone.layer1.0.conv1.weight"].fill_(float("nan"))

    _edit(folder, change)


def no_data_section(folder: Path) -> None:
    """The run's args.json loses its section `data`."""
    path = folder / RUN / "args.json"
    args = json.loads(path.read_text())
    del args["data"]
    path.write_text(json.dumps(args))


def dangling_links(folder: Path) -> None:
    """A class folder holds nothing but links to nowhere."""
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            (folder / "images" / name / f"{number}.png").symlink_to("/nowhere/x.png")


def as_safetensors(folder: Path) -> None:
    """The weights of the run as a file without its training state."""
    from safetensors.torch import save_file

    state = torch.load(_newest(folder), weights_only=True)["state_dict"]
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "w.safetensors")


def older_lightning(folder: Path) -> None:
    """A checkpoint that says it is of a Lightning before there were loops."""

    def change(content: dict) -> None:
        content["pytorch-lightning_version"] = "1.2.0"
        del content["loops"]

    _edit(folder, change)


def damaged_manifest(folder: Path) -> None:
    """A zoo whose manifest is no JSON."""
    (folder / "zoo").mkdir()
    (folder / "zoo" / "manifest.json").write_text('{"models": [3]')
    os.environ["SOLO_ZOO"] = str(folder / "zoo")


def file_in_the_way(folder: Path) -> None:
    """A file stands where a folder is to be written."""
    (folder / "taken").write_text("mine")


def folder_in_the_way(folder: Path) -> None:
    """A folder stands where a file is to be written."""
    (folder / "folder").mkdir()


def nothing(folder: Path) -> None:
    """The folder stays as it is."""


def _newest(folder: Path) -> Path:
    return max((folder / RUN).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def _edit(folder: Path, change: Callable[[dict], None]) -> None:
    for path in (folder / RUN).glob("*.ckpt"):
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, path)


def _pretrain(*arguments: str) -> tuple[str, list[str]]:
    return PRETRAIN, [*TINY, *arguments]


def _linear(*arguments: str) -> tuple[str, list[str]]:
    script, usual = COMMANDS["linear"]
    return script, [*usual, *arguments]


def _evaluate(script: str, *arguments: str) -> tuple[str, list[str]]:
    return script, ["--dataset", "digits", "--pretrained_checkpoint_dir", RUN, *arguments]


#: name -> (script and arguments, what is done to the folder before, a word of the message)
CASES: dict[str, tuple[tuple[str, list[str]], Change, str]] = {
    "batch size 1": (_pretrain(*BYOL, "optimizer.batch_size=1"), nothing, "batch_size"),
    "betas a number": (_pretrain(*ADAMW, "++optimizer.kwargs.betas=0.9"), nothing, "betas"),
    "three betas": (_pretrain(*ADAMW, "++optimizer.kwargs.betas=[0.9,0.9,0.9]"), nothing, "betas"),
    "no validation": (_pretrain("++check_val_every_n_epoch=0"), nothing, "check_val_every"),
    "no logging": (_pretrain("log_every_n_steps=0"), nothing, "log_every_n_steps"),
    "infinite rate": (_pretrain("optimizer.classifier_lr=inf"), nothing, "classifier_lr"),
    "no name": (_pretrain("name=''"), nothing, "name"),
    "long name": (_pretrain(f"name={'x' * 300}"), nothing, "name"),
    "negative queue": (_pretrain("method_kwargs.queue_size=-4"), nothing, "queue_size"),
    "temperature 0": (_pretrain("method_kwargs.temperature=0.0"), nothing, "temperature"),
    "negative seed": (_pretrain("++seed=-1"), nothing, "seed"),
    "large seed": (_pretrain(f"++seed={2**32}"), nothing, "seed"),
    "kappa": (_pretrain(*SYNCCP, "sparse.csi.kappa=nan"), nothing, "kappa"),
    "gap of one encoder": (_pretrain(*SIMCLR, *SYNCCP, "sparse.gap=0.5"), nothing, "gap"),
    "label smoothing": (_linear("++label_smoothing=3"), nothing, "label_smoothing"),
    "k of knn_eval": (
        _pretrain("++knn_eval.enabled=True", "++knn_eval.k=100000"),
        nothing,
        "knn_eval.k",
    ),
    "k of main_knn": (_evaluate(KNN, "--k", "100000"), nothing, "k"),
    "k 0 of main_knn": (_evaluate(KNN, "--k", "0"), nothing, "--k"),
    "NaN in kNN": (_evaluate(KNN), nan_weights, "NaN"),
    "NaN in UMAP": (_evaluate(UMAP), nan_weights, "NaN"),
    "NaN in linear": (_linear(), nan_weights, "NaN"),
    "NaN in export": ((EXPORT, ["dense", RUN, "--out", "x.pt"]), nan_weights, "NaN"),
    "NaN in ONNX": ((EXPORT, ["onnx", RUN, "--out", "x.onnx"]), nan_weights, "NaN"),
    "export of no run": ((EXPORT, ["dense", "nowhere"]), nothing, "nowhere"),
    "export onto a folder": (
        (EXPORT, ["dense", RUN, "--out", "folder"]),
        folder_in_the_way,
        "folder",
    ),
    "export below a file": (
        (EXPORT, ["dense", RUN, "--out", "taken/x.pt"]),
        file_in_the_way,
        "taken",
    ),
    "export to a read-only disk": (
        (EXPORT, ["dense", RUN, "--out", "/proc/x.pt"]),
        nothing,
        "/proc/x.pt",
    ),
    "checkpoints below a file": (
        _pretrain("checkpoint.dir=taken"),
        file_in_the_way,
        "taken",
    ),
    "checkpoints on a read-only disk": (_pretrain("checkpoint.dir=/proc/x"), nothing, "/proc/x"),
    "slim of a dense run": ((EXPORT, ["slim", RUN]), nothing, "mask"),
    "rows of an accelerator": ((ACCELERATOR, [RUN, "--rows", "0"]), nothing, "rows"),
    "cost without data": ((COST, [RUN]), no_data_section, "data"),
    "dangling links": (_pretrain(*FOLDERS), dangling_links, "images"),
    "resume from safetensors": (
        _pretrain("++resume_from_checkpoint=w.safetensors"),
        as_safetensors,
        "w.safetensors",
    ),
    "resume from an older Lightning": (
        _pretrain(f"++resume_from_checkpoint={RUN}/tiny-0-ep=0.ckpt"),
        older_lightning,
        "loops",
    ),
    "a damaged manifest": (
        ("-c", ["from solo.checkpoints.zoo import read_manifest as r; r()"]),
        damaged_manifest,
        "manifest",
    ),
    "init_from NaN": (_pretrain(f"++init_from={RUN}"), nan_weights, "NaN"),
    "resident images that do not fit": (
        _pretrain("++data.format=resident", "++data.resident_size=30000"),
        nothing,
        "resident_size",
    ),
    "more crops than memory": (_pretrain("augmentations=3"), nothing, "augmentations"),
    "padding of small images": (
        _pretrain("augmentations=[{crop_size:64,num_crops:2,rrc:{enabled:false},padding:4}]"),
        nothing,
        "crop_size",
    ),
    "padding of small images, in a worker": (
        _pretrain(
            "augmentations=[{crop_size:64,num_crops:2,rrc:{enabled:false},padding:4}]",
            "data.num_workers=1",
        ),
        nothing,
        "crop_size",
    ),
    "devices 0": (_pretrain("devices=0"), nothing, "devices"),
    "a device that is not there": (
        _pretrain("accelerator=gpu"),
        nothing,
        "accelerator",
    ),
    "precision": (_pretrain("++precision=17"), nothing, "precision"),
    "strategy": (_pretrain("++strategy=ddpp"), nothing, "strategy"),
    "steps before the checkpoint": (_pretrain("++checkpoint.every_n_steps=0"), nothing, "every_n"),
    "monitor of nothing": (_pretrain("++checkpoint.monitor=val_ac1"), nothing, "val_ac1"),
}


def attempt(name: str, source: Path, work: Path) -> str:
    """Try one case in a folder of its own; what is wrong with its end, empty if nothing is."""
    (script, arguments), change, word = CASES[name]
    folder = work / name.replace(" ", "-")
    shutil.copytree(source, folder)
    change(folder)
    if script == "-c":
        (folder / "script.py").write_text(_PROGRAM.format(arguments[0]))
        script, arguments = str(folder / "script.py"), []
    ended = farm.run(script, arguments, folder, 300)
    said = ended.text.rpartition("error: ")[2] if "error: " in ended.text else ""
    problem = ""
    if ended.traceback:
        problem = f"traceback: {ended.text.strip().splitlines()[-1]}"
    elif ended.code != 2:
        problem = f"exit {ended.code}: {ended.text[-300:]}"
    elif word not in said:
        problem = f"'{word}' is not named: {said or ended.text[-300:]}"
    elif (folder / "taken").is_dir() or list(folder.rglob("*.partial")):
        problem = "something half written is left"
    shutil.rmtree(folder)
    print(f"{name}: {problem or 'ok: ' + ' '.join(said.split())[:200]}", flush=True)
    return problem


_PROGRAM = "from solo.programs.app import run_program\nrun_program(lambda: exec({!r}))\n"


def main(argv: list[str] | None = None) -> int:
    """Try them all; 1 if any ended otherwise than it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CASES))
    args = parser.parse_args(argv)
    farm.preload()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "run"
        prepare(READ_A_RUN[0], source)
        wrong = [name for name in args.names if attempt(name, source, Path(folder))]
    print(f"{len(args.names)} tried, {len(wrong)} ended otherwise than they should: {wrong}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
