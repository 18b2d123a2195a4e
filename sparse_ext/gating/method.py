# SPDX-License-Identifier: MIT
"""What a gating method is: branches, patched layers, losses. A page per paper implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from solo.utils.views import View
from sparse_ext.gating.branches import BranchContext, Pass
from sparse_ext.gating.config.sections import GATES, GatingConfig


class Gated:
    """Mixin of every gated layer; `attach` tells it its name and its encoder's context.

    In its forward pass a layer asks `self.context.branch` and reports with `self.record(...)`.
    """

    context: BranchContext
    name: str

    def record(self, usage: Any) -> None:
        """Report to the pass under way (see `BranchContext.record`)."""
        self.context.record(self.name, usage)

    def own_convs(self) -> Iterable[nn.Module]:
        """The convolutions whose MACs are in what the layer reports."""
        return ()


class GatingMethod(ABC):
    """One gating method, made from its configuration; holds no tensors and no state.

    Attributes:
        gated: the branches in which gates act; figures are logged of these.
    """

    gated: ClassVar[tuple[str, ...]] = ()

    @property
    def two_encoders(self) -> bool:
        """Whether the branches have an encoder each (see `sparse_ext.gating.two_encoders`)."""
        return False

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def branch_of(self, view: View, epoch: int) -> str:
        """The branch that encodes an announced view: the only place that decides it."""

    @abstractmethod
    def patch(self, backbone: nn.Module) -> Mapping[str, Any]:
        """Replace the layers of `backbone` that get gates, in place.

        Returns:
            the gated layers (`Gated`) by name.

        Raises:
            ConfigError: the encoder has no layer that this method gates, or shapes do not fit.
        """

    def advance(self, layers: Mapping[str, Any], progress: float) -> None:
        """Take the gated layers of one encoder along a schedule.

        Args:
            layers: by name.
            progress: share of the optimizer steps that have been taken, 0 to 1.
        """
        return None

    def counts(self, name: str) -> bool:
        """Whether the plain convolution `name` is part of the MACs that are compared."""
        return True

    def losses(self, gating: Any, module: Any, views: Sequence[Tensor]) -> dict[str, Tensor]:
        """Terms to add to the training loss, by name.

        Args:
            gating: of the online encoder; its passes of this step are on `gating.context.tape`.
            module: that trains.
            views: images of this step.
        """
        return {}

    def figures(self, online: list[Pass], momentum: list[Pass]) -> dict[str, Tensor]:
        """Further figures of one training step, 0-dim, averaged over the epoch and logged."""
        return {}

    def gate_parameters(self, backbone: nn.Module) -> Iterable[nn.Parameter]:
        """Parameters that get `gate_options` instead of the encoder's."""
        return ()

    #: of the optimizer's group of the gate parameters
    gate_options: ClassVar[Mapping[str, Any]] = {"weight_decay": 0.0}

    def idle(self, backbone: nn.Module, branches: set[str]) -> list[nn.Parameter]:
        """Parameters that no pass uses if only these branches run."""
        return []

    def check(self, done: Pass, layers: Mapping[str, Any]) -> None:
        """Refuse settings that this encoder cannot fulfil at the size of the run's images.

        Args:
            done: a pass of one image without values (on the meta device).
            layers: the gated layers by name.
        """
        return None

    def check_views(self, sizes: Collection[int]) -> None:
        """Refuse settings that these sizes of views (pixels) rule out."""
        return None


def method_of(config: GatingConfig) -> GatingMethod:
    """The method that a configuration asks for."""
    return GATES.find(config.name, "gating.name")(config)


class GatedConv2d(Gated, nn.Conv2d):
    """Made from a plain convolution by swapping its class; the weight keeps its key.

    Its forward pass asks `seen_weight()`: with masks that prune in the forward pass
    (`sparse_ext.masks.living_weights`) that is not the stored weight.
    """

    def seen_weight(self) -> Tensor:
        """(C_out, C_in, kh, kw) as this pass sees it."""
        return self.weight

    def own_convs(self) -> list[nn.Module]:
        """The convolutions whose cost the gate decides: this one alone."""
        return [self]
