# SPDX-License-Identifier: MIT
"""How checkpoints reach the disk: equal states make equal bytes, and nothing is copied first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from solo.files.whole import whole_file


class CheckpointWriter(TorchCheckpointIO):
    """Lightning's way to read checkpoints, and a plainer one to write them.

    A pickle refers to an object that it has met before, so that two texts that are one object take
    fewer bytes than two equal ones: a run that goes on, whose names came from a file, would write
    other files than one that was never stopped. Here equal texts are one object, and containers
    are never shared.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path` straight away; whoever calls sees to it that it is whole.

        Raises:
            TypeError: for `storage_options`, of which there are none.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are written to the disk, which has no `storage_options`")
        with open(path, "wb") as file:  # given a path, torch would write its name into the file
            torch.save(_plain(checkpoint), file)


def write_checkpoint(path: str | Path, content: dict[str, Any]) -> Path:
    """Write a checkpoint that no Trainer makes; it appears at once and complete, or not at all.

    Raises:
        OutputError: the disk refuses it.
    """
    with whole_file(path) as partial:
        CheckpointWriter().save_checkpoint(content, partial)
    return Path(path)


def _plain(node: Any) -> Any:
    """The same content with equal texts as one object, and every container an object of its own."""
    if type(node) is str:
        return sys.intern(node)
    if type(node) is dict:
        return {_plain(key): _plain(value) for key, value in node.items()}
    if type(node) in (list, tuple):
        return type(node)(_plain(item) for item in node)
    return node
