# SPDX-License-Identifier: MIT
"""The commands that are tried, each on the digits data set and a few seconds long."""

from __future__ import annotations

from pathlib import Path

from tests.stress.farm import run

HERE = Path(__file__).parent
TINY = ["--config-path", str(HERE), "--config-name", "tiny.yaml"]
PRETRAIN, LINEAR, TICKETS = "main_pretrain.py", "main_linear.py", "main_tickets.py"

#: name -> script and arguments; all of them go on by themselves
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "pair": (PRETRAIN, [*TINY, "+sparse=synccp", "sparse.update_period=2"]),
    "pair-steps": (
        PRETRAIN,
        [
            *(*TINY, "+sparse=synccp", "sparse.update_period=2", "++checkpoint.every_n_steps=2"),
            *("num_sanity_val_steps=1", "++check_val_every_n_epoch=2"),
        ],
    ),
    "shared": (
        PRETRAIN,
        [
            *TINY,
            "method=simclr",
            "++method_kwargs={proj_hidden_dim: 8, proj_output_dim: 4, temperature: 0.2}",
            "+sparse=granet",
            "sparse.update_period=2",
        ],
    ),
    "gated-steps": (
        PRETRAIN,
        [
            *TINY,
            "method=simclr",
            "++method_kwargs={proj_hidden_dim: 8, proj_output_dim: 4, temperature: 0.2}",
            "+gating=cdg",
            "gating.groups=2",
            "++checkpoint.every_n_steps=2",
        ],
    ),
    "gated": (
        PRETRAIN,
        [
            *TINY,
            "method=simclr",
            "++method_kwargs={proj_hidden_dim: 8, proj_output_dim: 4, temperature: 0.2}",
            "+gating=cdg",
            "gating.groups=2",
        ],
    ),
    "linear": (
        LINEAR,
        [
            *["--config-path", str(HERE), "--config-name", "tiny_linear.yaml"],
            "pretrained_feature_extractor=source/trained_models/mocov2plus/0",
        ],
    ),
    "tickets": (
        TICKETS,
        [*TINY, "max_epochs=2", "+tickets=digits", "tickets.levels=1", "tickets.rewind_samples=8"],
    ),
    "prune": (
        "-m sparse_ext.prune",
        [
            *("source/trained_models/mocov2plus/0", "--data", "digits", "--out", "pruned"),
            *("--images", "16", "--sparsity", "0.5,0.8"),
        ],
    ),
    "quickstart": (
        "-m scripts.experiments.quickstart",
        [
            *("--output", "quickstart"),
            *("--pretrain", "max_epochs=4", "++limit_train_batches=30", "++limit_val_batches=1"),
            *("backbone.kwargs.width=2", "check_val_every_n_epoch=2", "optimizer.batch_size=4"),
            *("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.classifier_lr=0.1"),
            *("method_kwargs.proj_hidden_dim=16", "method_kwargs.num_directions=8"),
            *("--linear", "max_epochs=2", "++limit_train_batches=4", "++limit_val_batches=1"),
            *("backbone.kwargs.width=2", "check_val_every_n_epoch=1"),
        ],
    ),
}
READ_A_RUN = ("linear", "prune")


def prepare(name: str, folder: Path) -> None:
    """What a command needs before it can run: the run whose encoder it reads."""
    if name in READ_A_RUN:
        (folder / "source").mkdir(parents=True)
        ended = run(PRETRAIN, [*TINY, "max_epochs=1"], folder / "source")
        if ended.code:
            raise RuntimeError(ended.text)
