# SPDX-License-Identifier: MIT
"""Everything in `sparse_ext` that stands on private names of torch and Lightning.

What `solo` needs, too, is in `solo.compat`. Each has a test in tests/test_compat.py, which fails
when the library changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

#: base class of all of torch's batch norms
BatchNorm = _BatchNorm
#: base class of all of torch's convolutions
ConvNd = _ConvNd
#: name of the logger of fake tensors, which reports every shape that does not fit
FAKE_TENSOR_LOGGER = "torch._subclasses.fake_tensor"
#: context without the dispatch modes (fake tensors, recorders) that are at work
without_modes = _disable_current_modes
#: absolute values of a list of tensors
foreach_abs = torch._foreach_abs


def unwrapped(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`'s wrapper, whose names have no `_orig_mod.` in front."""
    return getattr(module, "_orig_mod", module)


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module go through `torch.compile`, as far as they have been told to."""
    return unwrapped(module) is not module or module._compiled_call_impl is not None


def put_first(trainer: Trainer, callback: Callback) -> None:
    """Let `callback` act before all others, in every hook that is still to come."""
    others = [c for c in trainer.callbacks if c is not callback]  # type: ignore[attr-defined]
    trainer.callbacks = [callback, *others]  # type: ignore[attr-defined]


def keep_from_ddp(module: LightningModule, names: Iterable[str]) -> None:
    """Let DDP neither share nor reduce these parameters and buffers of `module`."""
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ())) | set(names)
    module._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]


def hooks_before_loading(module: nn.Module) -> list[Callable]:
    """The functions that `register_load_state_dict_pre_hook` has registered on a module."""
    hooks = module._load_state_dict_pre_hooks.values()
    return [getattr(hook, "hook", hook) for hook in hooks]


def forget_hooks_before_loading(module: nn.Module, functions: Collection[Callable]) -> None:
    """Remove these functions from those that are called before `module` loads a state dict."""
    hooks = module._load_state_dict_pre_hooks
    for key in [k for k, hook in hooks.items() if getattr(hook, "hook", hook) in functions]:
        del hooks[key]


def unscales_by_itself(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer divides its gradients by the loss scale inside of its step."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def is_dispatched() -> bool:
    """Whether a mode (FlopCounterMode, fake tensors) looks at every operation of torch."""
    return torch._C._len_torch_dispatch_stack() > 0
