# SPDX-License-Identifier: MIT
"""The exported encoder: a ResNet of blocks that compute open channels only, described by JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from solo.errors import CheckpointError
from sparse_ext.gating.export.layers import ConvShape, OpenBlock, OpenConv


class OpenEncoder(nn.Module):
    """A gated ResNet for inference; equals the simulation in eval mode up to rounding.

    A gate whose logit lies within rounding of zero may fall on the other side.

    Args:
        stem: shape of the first convolution.
        pool: whether a 3x3 max pooling of stride 2 follows it.
        blocks: the residual blocks in order.
        outputs: of a linear layer behind the pooled features; None = there is none.
        facts: what is known beside the architecture (method, budget, data set); kept with it.

    Attributes:
        num_features: F.
    """

    def __init__(
        self,
        stem: ConvShape,
        pool: bool,
        blocks: list[OpenBlock],
        outputs: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.stem, self.pool = OpenConv(stem), pool
        self.blocks = nn.ModuleList(blocks)
        self.facts = dict(facts or {})
        width: int = blocks[-1].convs[-1].shape.planes  # type: ignore[union-attr, assignment]
        self.head = None if outputs is None else nn.Linear(width, outputs).requires_grad_(False)
        self.num_features = width if outputs is None else outputs

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, F); every image computes its own open channels."""
        x = torch.relu(self.stem(images.contiguous(memory_format=torch.channels_last)))
        x = max_pool2d(x, 3, stride=2, padding=1) if self.pool else x
        for block in self.blocks:
            x = block(x)
        x = x.mean(dim=(2, 3))
        return x if self.head is None else self.head(x)

    def describe(self) -> dict[str, Any]:
        """The architecture and the facts as plain data, for `from_description`."""
        blocks: list[dict[str, Any]] = []
        for block in self.blocks:
            convs: Any = block.convs
            gates: Any = block.gates
            shortcut: Any = block.shortcut
            blocks.append(
                {
                    "convs": [asdict(conv.shape) for conv in convs],
                    "hidden": [gate.sizes[1] for gate in gates],
                    "shortcut": None if shortcut is None else asdict(shortcut.shape),
                }
            )
        return {
            "stem": asdict(self.stem.shape),
            "pool": self.pool,
            "blocks": blocks,
            "outputs": None if self.head is None else self.head.out_features,
            "facts": self.facts,
        }


def from_description(description: Mapping[str, Any]) -> OpenEncoder:
    """An encoder of that architecture, all zeros.

    Raises:
        CheckpointError: something is missing or of another kind.
    """
    try:
        blocks = [
            OpenBlock(
                [ConvShape(**shape) for shape in block["convs"]],
                block["hidden"],
                None if block["shortcut"] is None else ConvShape(**block["shortcut"]),
            )
            for block in description["blocks"]
        ]
        stem = ConvShape(**description["stem"])
        rest = (description["outputs"], description["facts"])
        return OpenEncoder(stem, description["pool"], blocks, *rest)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"This is no description of a gated encoder: {error!r}") from error
