# SPDX-License-Identifier: MIT
"""Which channels of a network exist together, found by following its tensors.

The channels of a tensor are written by one layer, pass through norms and activations, and are read
by others. Tensors that are added share their channels (a residual stream), so those are one
*space*: a channel of it can only go from all its writers and readers at once. Whatever does
something unknown to a tensor fixes the space it belongs to.

The network is traced with torch.fx; where that is impossible (control flow that depends on data),
its parts are traced by themselves, and their inputs and outputs are fixed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear

LAYERS = (nn.Conv2d, nn.Linear, MaskedConv2d, MaskedLinear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Softplus, nn.Identity),
)
_POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)
_DROPS = (nn.Dropout, nn.Dropout2d)
_POINTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.sigmoid, F.tanh),
    *(torch.relu, torch.sigmoid, torch.tanh),
)
_POINTWISE_METHODS = ("relu", "relu_", "sigmoid", "tanh", "contiguous", "clone")
_POOL_FUNCTIONS = (F.adaptive_avg_pool2d, F.max_pool2d, F.adaptive_max_pool2d)
_ADDITIONS = (operator.add, operator.iadd, torch.add)

Kind = Literal["map", "flat", "last", "image"]  # where the channels of a tensor are


@dataclass(eq=False)
class Space:
    """Channels that exist together or not at all.

    Attributes:
        size: how many.
        producers: layers whose outputs they are.
        consumers: layers that read them, and how many columns each has per channel (more than one
            where a map is flattened).
        norms: batch norms over them.
        fixed: why none of them can go; empty if they can.
        written_before: how many layers had written when it came up.
    """

    size: int
    producers: list[str] = field(default_factory=list)
    consumers: dict[str, int] = field(default_factory=dict)
    norms: list[str] = field(default_factory=list)
    fixed: str = ""
    written_before: int = 0

    @property
    def name(self) -> str:
        """Name of the layer that writes these channels first."""
        return self.producers[0] if self.producers else "input"


class Step(NamedTuple):
    """One operation, for whoever computes channel by channel.

    Attributes:
        kind: `input`, `layer`, `norm`, `same` (each channel by itself, through `apply`), `pool`
            (`same`, but only zeros survive at the border), `drop`, `add`, `opaque`.
        inputs: numbers of the steps whose results it takes.
        name: of its module, empty for a function.
        apply: a function of a tensor (1, channels), for `same`.
    """

    kind: str
    inputs: tuple[int, ...]
    name: str = ""
    apply: Callable[[Tensor], Tensor] = lambda x: x


class Channels:
    """The channel spaces of one network, found by tracing it.

    Args:
        net: any module; it is not changed.

    Attributes:
        spaces: those with a writer, in the order of their first one.
        steps: operations in the order in which they run, one list per traced part.
        writes: the space that a layer writes, by its name.
        reads: the space that it reads.
        untraced: parts that could not be followed, and why.
    """

    def __init__(self, net: nn.Module) -> None:
        self.steps: list[list[Step]] = []
        self.writes: dict[str, Space] = {}
        self.reads: dict[str, Space] = {}
        self.untraced: dict[str, str] = {}
        self._merged: dict[Space, Space] = {}
        self._follow(net, "")
        self.writes = {name: self.find(space) for name, space in self.writes.items()}
        self.reads = {name: self.find(space) for name, space in self.reads.items()}
        self.spaces = list(dict.fromkeys(self.writes.values()))

    def _follow(self, module: nn.Module, prefix: str) -> None:
        if _Tracer.leaf(module):
            return
        try:
            graph = _Tracer().trace(module)
        except Exception as error:  # whatever a forward pass does with a tensor that has no values
            self.untraced[prefix.rstrip(".") or type(module).__name__] = str(error).split("\n")[0]
            for name, child in module.named_children():
                self._follow(child, f"{prefix}{name}.")
            return
        self.steps.append(list(_Walk(self, module, prefix).over(graph)))

    def find(self, space: Space) -> Space:
        """The space that it has become part of."""
        while space in self._merged:
            space = self._merged[space]
        return space

    def merge(self, a: Space, b: Space) -> Space:
        """Tensors are added: their channels are one space."""
        a, b = self.find(a), self.find(b)
        if a is b:
            return a
        if b.written_before < a.written_before:
            a, b = b, a
        if a.size != b.size:
            a.fixed = b.fixed = a.fixed or b.fixed or "is added to a tensor of another width"
            return a
        a.producers += b.producers
        a.consumers |= b.consumers
        a.norms += b.norms
        a.fixed = a.fixed or b.fixed
        self._merged[b] = a
        return a


class _Tracer(fx.Tracer):
    """Stops at layers and norms, masked ones included."""

    @staticmethod
    def leaf(module: nn.Module) -> bool:
        """Whether it is one operation."""
        own = type(module).__module__.startswith("torch.nn")
        containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        return isinstance(module, LAYERS + NORMS) or (own and not isinstance(module, containers))

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return self.leaf(module)


class _Flow(NamedTuple):
    """A tensor: the step that made it, and where its channels are."""

    step: int
    space: Space
    kind: Kind


class _Walk:
    """One pass over a traced graph."""

    def __init__(self, channels: Channels, module: nn.Module, prefix: str) -> None:
        self.channels, self.module, self.prefix = channels, module, prefix
        self.flows: dict[fx.Node, _Flow] = {}
        self.count = 0

    def over(self, graph: fx.Graph) -> Iterator[Step]:
        for node in graph.nodes:
            inputs = [self.flows[n] for n in node.all_input_nodes if n in self.flows]
            if node.op == "output":
                for flow in inputs:
                    self._fix(flow, "is what the network puts out")
                continue
            if _reads_shape(node):
                continue
            step, space, kind = self._one(node, inputs)
            if space is not None:
                self.flows[node] = _Flow(self.count, space, kind)
                self.count += 1
                yield step

    def _one(self, node: fx.Node, inputs: list[_Flow]) -> tuple[Step, Space | None, Kind]:
        if node.op == "placeholder":
            return Step("input", ()), Space(0, fixed="is the input"), "image"
        if node.op == "call_module":
            known = self._module(str(node.target), inputs)
        elif node.op in ("call_function", "call_method"):
            known = _operation(node, inputs, self.channels)
        else:
            return Step("opaque", ()), None, "image"
        if known is not None:
            return known
        what = f"passes through {_title(node, self.module)}"
        for flow in inputs:
            self._fix(flow, what)
        if not inputs:
            return Step("opaque", ()), None, "image"
        return Step("opaque", tuple(f.step for f in inputs)), Space(0, fixed=what), "image"

    def _fix(self, flow: _Flow, why: str) -> None:
        space = self.channels.find(flow.space)
        space.fixed = space.fixed or why

    def _module(self, target: str, inputs: list[_Flow]) -> tuple[Step, Space, Kind] | None:
        module, name = self.module.get_submodule(target), self.prefix + target
        if len(inputs) != 1:
            return None
        (flow,) = inputs
        space = self.channels.find(flow.space)
        if type(module) in LAYERS:
            return self._layer(module, name, flow, space)
        if type(module) in NORMS:
            if name in space.norms or module.num_features != space.size:  # type: ignore[union-attr]
                return None
            space.norms.append(name)
            return Step("norm", (flow.step,), name), space, flow.kind
        if type(module) in _POINTWISE:
            return Step("same", (flow.step,), name, module), space, flow.kind
        if type(module) in _DROPS:
            return Step("drop", (flow.step,), name), space, flow.kind
        if type(module) in _POOLS and flow.kind == "map":
            padded = isinstance(module, nn.AvgPool2d) and module.count_include_pad
            border = padded and module.padding not in (0, (0, 0))  # type: ignore[union-attr]
            return Step("pool" if border else "same", (flow.step,), name), space, "map"
        if type(module) is nn.Flatten and module.start_dim == 1 and flow.kind in ("map", "flat"):
            return Step("same", (flow.step,), name), space, "flat"
        return None

    def _layer(
        self, module: Any, name: str, flow: _Flow, space: Space
    ) -> tuple[Step, Space, Kind] | None:
        linear = isinstance(module, nn.Linear)
        outputs = module.out_features if linear else module.out_channels
        columns = module.weight.shape[1]
        kinds = ("flat", "last", "image") if linear else ("map", "image")
        fits = flow.kind in kinds and (not space.size or columns % space.size == 0)
        if not fits or name in self.channels.writes or getattr(module, "groups", 1) > 1:
            if name in self.channels.writes:
                again = self.channels.find(self.channels.writes[name])
                again.fixed = again.fixed or f"is written by {name}, which runs twice"
            return None
        space.consumers[name] = columns // space.size if space.size else 1
        self.channels.reads[name] = space
        written = Space(outputs, producers=[name], written_before=len(self.channels.writes))
        self.channels.writes[name] = written
        return Step("layer", (flow.step,), name), written, "last" if linear else "map"


def _operation(
    node: fx.Node, inputs: list[_Flow], channels: Channels
) -> tuple[Step, Space, Kind] | None:
    """Functions and methods."""
    steps = tuple(flow.step for flow in inputs)
    if node.target in _ADDITIONS or node.target in ("add", "add_"):
        same_kind = len({flow.kind for flow in inputs}) == 1
        if len(inputs) == len(node.args) == 2 and same_kind and not node.kwargs:
            space = channels.merge(*(flow.space for flow in inputs))
            return Step("add", steps), space, inputs[0].kind
        return None
    if len(inputs) != 1:
        return None
    (flow,) = inputs
    space, known = channels.find(flow.space), (steps, channels.find(flow.space))
    if node.target in _POINTWISE_FUNCTIONS or node.target in _POINTWISE_METHODS:
        return Step("same", steps, apply=partial(_call, node)), space, flow.kind
    if node.target in _POOL_FUNCTIONS and flow.kind == "map":
        return Step("same", steps), known[1], "map"
    if node.target is F.dropout:
        return Step("drop", steps), space, flow.kind
    if node.target in (torch.flatten, "flatten") and flow.kind in ("map", "flat"):
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        return (Step("same", steps), space, "flat") if start == 1 else None
    if node.target in (torch.mean, "mean") and flow.kind == "map":
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        spatial = isinstance(dims, (list, tuple)) and sorted(dims) in ([2, 3], [-2, -1])
        keep = node.kwargs.get("keepdim", False) or len(node.args) > 2
        return (Step("same", steps), space, "map" if keep else "flat") if spatial else None
    return None


def _call(node: fx.Node, x: Tensor) -> Tensor:
    """The function of a node on another tensor."""
    kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    if node.op == "call_method":
        return getattr(x, str(node.target).rstrip("_"))(*node.args[1:], **kwargs)
    return node.target(x, *node.args[1:], **kwargs)  # type: ignore[operator]


def _reads_shape(node: fx.Node) -> bool:
    """Reading a size changes nothing; nor does arithmetic on it."""
    if node.target is getattr:
        return bool(node.args[1] == "shape")
    return node.target in ("size", "dim")


def _title(node: fx.Node, module: nn.Module) -> str:
    if node.op == "call_module":
        target = module.get_submodule(str(node.target))
        grouped = getattr(target, "groups", 1) > 1
        return f"{'a grouped ' if grouped else ''}{type(target).__name__} ({node.target})"
    return f"{getattr(node.target, '__name__', node.target)}()"
