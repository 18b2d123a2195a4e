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
        [*TINY, "+sparse=synccp", "sparse.update_period=2", "++checkpoint.every_n_steps=2"],
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
}


def prepare(name: str, folder: Path) -> None:
    """What a command needs before it can run: the encoder that a linear evaluation reads."""
    if name == "linear":
        (folder / "source").mkdir(parents=True)
        ended = run(PRETRAIN, [*TINY, "max_epochs=1"], folder / "source")
        if ended.code:
            raise RuntimeError(ended.text)
