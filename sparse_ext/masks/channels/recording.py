# SPDX-License-Identifier: MIT
"""What a network computes, as a list of ATen operations, without computing it.

One forward pass over fake tensors (shapes without data): any Python that runs is recorded, whatever
modules, functions or views it uses, with the module in whose forward pass each operation stands.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from sparse_ext.compat import (
    FAKE_TENSOR_LOGGER,
    FakeTensorMode,
    TorchDispatchMode,
    tree_leaves,
    tree_map,
    without_modes,
)

SIDES = (224, 32, 64, 256, 384, 8, 16, 28, 96, 128, 299, 448)  # tried in turn


class Ref(NamedTuple):
    """A tensor of the recording, by number."""

    number: int


class Op(NamedTuple):
    """One ATen operation of a forward pass, without its tensors.

    Attributes:
        name: of the ATen function, without overload and the underscore of in-place ones.
        func: the function.
        args: positional arguments, tensors as `Ref`.
        kwargs: named ones.
        outs: numbers of the tensors it returns; -1 for what is none.
        module: name of the module in whose forward pass it runs.
    """

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outs: tuple[int, ...]
    module: str


class Untraceable(Exception):
    """A forward pass that needs values, or an input that nobody knows."""


@dataclass
class Recording:
    """What one forward pass of a network has computed, and where.

    Attributes:
        ops: in order.
        shapes: of each tensor.
        names: of the tensors that are parameters or buffers.
        inputs: the network's own.
        outputs: what it returns.
        calls: per module, what it was called with each time: (position of the next operation, its
            tensors).
        error: what ended the pass early, if anything did.
    """

    ops: list[Op] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    calls: dict[str, list[tuple[int, tuple[int, ...]]]] = field(default_factory=dict)
    error: str = ""


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _pointwise(x: Tensor, *rest: Any, **options: Any) -> Tensor:
    return torch.empty_like(x)


def _layer_norm(x: Tensor, shape: list[int], w: Any, *rest: Any) -> tuple[Tensor, ...]:
    if list(x.shape[-len(shape) :]) != list(shape) or (
        w is not None and list(w.shape) != list(shape)
    ):
        raise RuntimeError(f"a layer norm over {list(shape)} cannot take {list(x.shape)}")
    flat = x.new_empty([*x.shape[: -len(shape)], *[1] * len(shape)])
    return torch.empty_like(x), flat, torch.empty_like(flat)


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise RuntimeError(f"shapes {list(a.shape)} and {list(b.shape)} cannot be multiplied")
    return a.new_empty([*a.shape[:-1], b.shape[-1]])


def _biased_product(bias: Tensor, a: Tensor, b: Tensor, **factors: Any) -> Tensor:
    if bias.shape[-1] not in (1, b.shape[-1]):
        raise RuntimeError(f"{bias.shape[-1]} biases for {b.shape[-1]} outputs")
    return _product(a, b)


def _softmax(x: Tensor, dim: int, half: bool) -> Tensor:
    return torch.empty_like(x)


#: shapes that fake tensors would find by running much Python code
_SHAPES: dict[str, Callable] = {
    "native_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    **{"mm": _product, "bmm": _product, "addmm": _biased_product, "_softmax": _softmax},
    **{"gelu": _pointwise, "relu": _pointwise},
}


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation returns for fake tensors; of one that knows only real ones, its shapes."""
    try:
        return func(*args, **kwargs)
    except Exception:
        if func.namespace in ("aten", "prims"):
            raise
    with without_modes():
        real = tree_map(lambda x: _ones(x) if isinstance(x, Tensor) else x, (args, kwargs))
        found = func(*real[0], **real[1])
        about = tree_map(lambda x: _About(x) if isinstance(x, Tensor) else x, found)
    return tree_map(lambda x: x.fake() if isinstance(x, _About) else x, about)


def _ones(fake: Tensor) -> Tensor:
    return torch.ones(tuple(fake.shape), dtype=fake.dtype, device=fake.device)


class _About:
    """What a fake tensor needs to know of a real one."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype = tuple(tensor.shape), tensor.dtype
        self.device = tensor.device

    def fake(self) -> Tensor:
        """A tensor without data, inside of fake tensors."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)


class _Recorder(TorchDispatchMode):
    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.to, self.stack = recording, [""]
        self.numbers: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def number(self, tensor: Tensor, new: bool = False) -> int:
        known = getattr(tensor, "_channels_number", None)
        if known is None or known[0] is not self or new:
            known = (self, len(self.to.shapes))
            self.to.shapes.append(tuple(tensor.shape))
            tensor._channels_number = known  # type: ignore[attr-defined]
        return known[1]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ == "device":
            return func(*args, **kwargs)
        refs = tree_map(lambda x: Ref(self.number(x)) if isinstance(x, Tensor) else x, args)
        named = tree_map(lambda x: Ref(self.number(x)) if isinstance(x, Tensor) else x, kwargs)
        short = _SHAPES.get(func.overloadpacket.__name__)
        out = _run(func, args, kwargs) if short is None else short(*args, **kwargs)
        results = out if isinstance(out, (tuple, list)) else (out,)
        outs = tuple(self.number(r, new=True) if isinstance(r, Tensor) else -1 for r in results)
        name = func.overloadpacket.__name__
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        self.to.ops.append(Op(name, func, refs, named, outs, self.stack[-1]))
        return out


@contextlib.contextmanager
def _watched(net: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """The recorder knows in which module it is."""
    names = {module: name for name, module in net.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            recorder.stack.append(names[module])
            tensors = [x for x in tree_leaves(args) if isinstance(x, Tensor)]
            call = (len(recorder.to.ops), tuple(recorder.number(x) for x in tensors))
            recorder.to.calls.setdefault(names[module], []).append(call)

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if module in names:
            recorder.stack.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the log lines of fake tensors about shapes that do not fit: that is an answer."""
    logger = logging.getLogger(FAKE_TENSOR_LOGGER)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _plainly(net: nn.Module, train: bool) -> Iterator[None]:
    """Attention without its fused inference kernel; the network in one mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    modes = {module: module.training for module in net.modules()}
    torch.backends.mha.set_fastpath_enabled(False)
    net.train(train)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # which kernel is fused depends on the widths
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


def example_shapes(net: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of inputs that a network might take, the likeliest first."""
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    if first is None:
        return []
    if isinstance(first, nn.Linear):
        return [(2, first.in_features)]
    sides: list[int] = []
    for module in (net, *net.children()):
        found = (getattr(module, name, None) for name in ("image_size", "img_size", "input_size"))
        given = [(getattr(module, "default_cfg", None) or {}).get("input_size"), *found]
        for value in given:
            side = value[-1] if isinstance(value, (tuple, list)) and value else value
            if isinstance(side, int) and not isinstance(side, bool) and side > 1:
                sides.append(side)
    channels = first.weight.shape[1] * first.groups
    return [(2, channels, side, side) for side in dict.fromkeys((*sides, *SIDES))]


def record(
    net: nn.Module,
    shape: tuple[int, ...],
    sizes: dict[str, tuple[int, ...]] | None = None,
    train: bool = False,
) -> Recording:
    """Record a forward pass; one that fails is recorded up to there, with its `error`.

    Args:
        net: the network; neither its weights nor its statistics change.
        shape: of the input.
        sizes: shapes of parameters and buffers that are to be others than those of `net`.
        train: in train mode.
    """
    to = Recording()
    recorder, sizes = _Recorder(to), sizes or {}
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), _plainly(net, train), _quietly(), fake:
        state = {}
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            wanted = sizes.get(name, tuple(tensor.shape))
            state[name] = torch.empty(wanted, dtype=tensor.dtype, device=tensor.device)
            to.names[recorder.number(state[name])] = name
        some = next((t for t in state.values() if t.is_floating_point()), torch.empty(1))
        x = torch.empty(shape, dtype=some.dtype, device=some.device)
        to.inputs.append(recorder.number(x))
        try:
            with _watched(net, recorder), recorder:
                out = torch.func.functional_call(net, state, (x,))
            tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            to.outputs = [recorder.number(t) for t in tensors]
        except Exception as error:  # whatever a forward pass does with a tensor without values
            to.error = str(error).strip().split("\n")[0] or type(error).__name__
    return to


def record_any(net: nn.Module, train: bool = False) -> tuple[Recording, tuple[int, ...]]:
    """A recording at the first input shape that the network takes, and that shape.

    Raises:
        Untraceable: it takes none that is tried.
    """
    why = "it has no convolution and no linear layer"
    for i, shape in enumerate(example_shapes(net)):
        recording = record(net, shape, train=train)
        if not recording.error:
            return recording, shape
        why = recording.error if not i else why
    raise Untraceable(why)
