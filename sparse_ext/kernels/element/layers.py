# SPDX-License-Identifier: MIT
"""Convolutions and linear layers that compute their kept weights only, where that is faster."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparse_ext.compat import is_dispatched
from sparse_ext.kernels.element import choice
from sparse_ext.kernels.element import op as op
from sparse_ext.kernels.element.function import (
    element_conv2d,
    element_conv2d_beside,
    products,
)
from sparse_ext.kernels.element.lanes import TYPES, laid_out
from sparse_ext.kernels.element.norm import folded
from sparse_ext.kernels.element.plan import Plan
from sparse_ext.kernels.plan import Window
from sparse_ext.masks.masked_layers import MaskedConv2d, MaskedLinear

SPARSE = 0.4  # density up to which the kernel is about as fast as dense convolutions


class ElementLayer(nn.Module):
    """What the layers of this kernel share. Same weight, mask and state as before.

    Attributes:
        kernel: `element` takes the kernel wherever it can compute the layer, `auto` where it is
            faster than torch's dense one, by measurement.
        dense_gradient: whether pruned weights get their gradient too, at the dense price.
        dense_share: share of training steps that want it, as far as known; for `auto`.
        used: whether the kernel computed the last input.
        frozen: what was found out about weights and masks holds while torch counts no change.
    """

    kernel = "auto"
    dense_gradient = True
    dense_share = 1.0
    used = False
    frozen = False

    def plan(self) -> Plan:
        """The kept weights, listed anew whenever the content of the mask is another."""
        weight: Tensor = self.weight.detach()  # type: ignore[union-attr, operator, assignment]
        mask = getattr(self, "mask", None)
        if mask is None:  # a dense layer beside sparse ones
            cached = self.__dict__.get("_plan")
            if cached is None or cached.steps != weight.stride():
                mask = torch.ones(weight.shape, dtype=torch.bool)
                self.__dict__["_plan"] = Plan(mask, self._window(), weight.stride())
            return self.__dict__["_plan"]
        cached = self.__dict__.get("_plan")
        if cached is None or not cached.fits(mask, weight.stride()):
            self.__dict__["_plan"] = Plan(mask, self._window(), weight.stride())
        return self.__dict__["_plan"]

    def chosen(self, x: Tensor) -> Plan | None:
        """The plan, if the kernel is to compute x (4 dimensions); None for torch's dense one."""
        if torch.compiler.is_compiling():
            return None
        version = self.version() if self.frozen else None
        if version is None:
            plan = self._choose(x)
        else:
            key = (version, x.shape, _computed_in(x), torch.is_grad_enabled())
            known: dict = self.__dict__.setdefault("_known", {})
            if key not in known:
                if len(known) > 32:
                    known.clear()
                known[key] = self._choose(x)
            plan = known[key]
        self.used = plan is not None
        return plan

    def version(self) -> tuple | None:
        """What changes with weight and mask, as far as torch counts; None if it does not."""
        tensors = [t for t in (self.weight, getattr(self, "mask", None)) if t is not None]
        if any(t.is_inference() for t in tensors):  # type: ignore[operator]
            return None
        return tuple((t.data_ptr(), t._version) for t in tensors)  # type: ignore[operator]

    def _choose(self, x: Tensor) -> Plan | None:
        if not self._takes(x):
            return None
        plan = self.plan()
        if self.kernel == "element":
            return plan
        training = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)  # type: ignore[union-attr]
        case = choice.Case(
            plan.shape, plan.window, tuple(x.shape), _computed_in(x),
            torch.get_num_threads(), training, self.dense_share if training else 0.0,  # type: ignore[arg-type]
            training and x.requires_grad, isinstance(self, LaneConv2d),  # type: ignore[arg-type]
            self.frozen and not training,
        )  # fmt: skip
        return plan if choice.pays(case, plan.density) else None

    def _takes(self, x: Tensor) -> bool:
        if _watched(x):
            return False
        weight: Tensor = self.weight  # type: ignore[assignment]
        if x.device.type != "cpu" or weight.device.type != "cpu" or not x.numel():
            return False
        if _computed_in(x) not in TYPES or weight.dtype != torch.float32 or not _dense(weight):
            return False
        if x.dtype not in (torch.float32, torch.bfloat16):
            return False
        if x.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu"):
            return False  # torch would say that the types differ
        if not self._shapes_fit(x):
            return False
        small = (
            self.kernel == "auto"
            and not self.frozen
            and not choice.is_large(weight.shape, x.shape, self._window())
        )
        return not small and choice.ready(self._wants)

    def _wants(self) -> bool:
        """Whether the kernel would be of use, told without it."""
        return self.kernel == "element" or self.frozen or kept(self) < choice.DENSEST

    def _window(self) -> Window:
        raise NotImplementedError

    def _shapes_fit(self, x: Tensor) -> bool:
        raise NotImplementedError

    def compute(self, x: Tensor, plan: Plan) -> Tensor:
        """What the kernel makes of x (4 dimensions)."""
        dense = self.dense_gradient and hasattr(self, "mask")  # else everything is kept
        x = x.to(_computed_in(x))
        return element_conv2d(x, self.weight, self.bias, plan, dense)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles list their weights anew."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_plan", "_known", "_folded")}


class _Convolution(ElementLayer):
    def _window(self) -> Window:
        return Window(*(_pair(getattr(self, n)) for n in ("stride", "padding", "dilation")))

    def _shapes_fit(self, x: Tensor) -> bool:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            return False
        return min(self._window().output_size(x.shape[2:], _pair(self.kernel_size))) > 0

    def forward(self, input: Tensor) -> Tensor:
        if self.frozen and torch.compiler.is_compiling() and hasattr(self, "mask"):
            rest = (list(p) for p in (self.stride, self.padding, self.dilation))  # type: ignore[arg-type]
            return torch.ops.sparse_ext.element_conv2d(
                input, self.weight, self.mask, self.bias, *rest
            )
        plan = self.chosen(input)
        if plan is None:
            return super().forward(laid_out(input))  # type: ignore[misc]
        return self.compute(input, plan)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and x for whatever else reads it.

        The gradients of both are summed while the input's is computed, in one pass.
        """
        alone = not (torch.is_grad_enabled() and x.requires_grad) or x.dtype != _computed_in(x)
        plan = None if alone else self.chosen(x)
        if plan is None:
            return self(x), x
        dense = self.dense_gradient and hasattr(self, "mask")
        return element_conv2d_beside(x, self.weight, self.bias, plan, dense)  # type: ignore[arg-type]

    def folded(
        self, x: Tensor, plan: Plan, scale: Tensor, shift: Tensor, residual: Any, relu: bool
    ) -> Tensor:
        """relu(conv(x) * scale + shift + residual), without gradients."""
        weight: Tensor = self.weight.detach()  # type: ignore[union-attr, operator, assignment]
        shift = shift if self.bias is None else shift + self.bias.detach() * scale  # type: ignore
        key = self.version() if self.frozen else None
        return products(x.to(_computed_in(x)), weight, plan, scale, shift, residual, relu, key)

    def folds(self, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        """Scale and shift of a batch norm that follows, remembered where weights are frozen."""
        parts = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        tensors = [t for t in parts if t is not None]
        if not self.frozen or any(t.is_inference() for t in tensors):
            return folded(bn)
        key = tuple((t.data_ptr(), t._version) for t in tensors)
        if self.__dict__.get("_folded", (None,))[0] != key:
            self.__dict__["_folded"] = (key, folded(bn))
        return self.__dict__["_folded"][1]


class ElementConv2d(_Convolution, MaskedConv2d):
    """A masked convolution that computes its kept weights; made by `use_element_kernel`."""


class LaneConv2d(_Convolution, nn.Conv2d):
    """A dense convolution; made by `use_element_kernel`.

    Where most of the sparse layers around it are sparse enough for the kernel, it may use it too,
    since leaving their layout and coming back to it costs more than some dense convolutions. That
    is told by their masks, not by what they last did, so that a resumed run decides alike.

    Attributes:
        around: the sparse layers of its encoder.
    """

    around: tuple[ElementLayer, ...] = ()

    def _choose(self, x: Tensor) -> Plan | None:
        if self.kernel != "element":
            if not self._takes(x):
                return None
            sparse = sum(layer.plan().density <= SPARSE for layer in self.around)
            if 2 * sparse <= len(self.around):
                return None
        return super()._choose(x)

    def _wants(self) -> bool:
        sparse = sum(kept(layer) <= SPARSE for layer in self.around)
        return self.kernel == "element" or 2 * sparse > len(self.around)


class ElementLinear(ElementLayer, MaskedLinear):
    """A masked linear layer that computes its kept weights; made by `use_element_kernel`.

    Its output has the features outermost in memory, which elementwise functions keep.
    """

    def _window(self) -> Window:
        return Window()

    def _shapes_fit(self, x: Tensor) -> bool:
        return x.shape[1] == self.in_features

    def forward(self, input: Tensor) -> Tensor:
        if _watched(input) or input.dim() < 2 or input.shape[-1] != self.in_features:
            return super().forward(input)  # a tracer is to see a linear layer, and no views
        rows = input.reshape(-1, self.in_features)[:, :, None, None]
        plan = self.chosen(rows)
        if plan is None:
            return super().forward(input)
        out = self.compute(rows, plan)[:, :, 0, 0]
        return out.unflatten(0, input.shape[:-1]) if input.dim() > 2 else out


def _watched(x: Tensor) -> bool:
    """Whether something looks at the operations on x: a compiler, a tracer, a mode of torch's."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.jit.is_scripting():
        return True
    return is_dispatched() or type(x) not in (Tensor, nn.Parameter)


def kept(layer: nn.Module) -> float:
    """Share of its weights that a layer's mask keeps."""
    mask: Tensor = layer.mask  # type: ignore[assignment]
    return int(mask.count_nonzero()) / max(1, mask.numel())


def _computed_in(x: Tensor) -> torch.dtype:
    """The type in which a convolution of x is computed."""
    if torch.is_autocast_enabled("cpu") and x.dtype in TYPES:
        return torch.get_autocast_dtype("cpu")
    return x.dtype


def _dense(weight: Tensor) -> bool:
    """Whether the weight fills its memory, so that a gradient can be laid out as it is."""
    sizes = sorted(zip(weight.stride(), weight.shape, strict=True))
    expected = 1
    for step, size in sizes:
        if size != 1 and step != expected:
            return False
        expected *= size
    return weight.numel() == math.prod(weight.shape)


def _pair(values: Any) -> tuple[int, int]:
    return int(values[0]), int(values[1])
