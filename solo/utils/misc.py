# SPDX-License-Identifier: MIT
"""Small helpers: config look-up, filters, gathering over ranks, parameter groups, tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo.data.catalogue import _SIZES
from solo.errors import DataError

# ---- configuration ------------------------------------------------------------------------------


def omegaconf_select(cfg: DictConfig, key: str, default: Any = None) -> Any:
    """The value at the dotted `key`, or `default` where the key is absent.

    The quoted string "None" of a YAML file means None.
    """
    value = OmegaConf.select(cfg, key, default=default)
    return None if isinstance(value, str) and value == "None" else value


def set_default(cfg: DictConfig, key: str, default: Any) -> None:
    """Give the dotted `key` of `cfg` the value `default` unless it has one, in place.

    A null where the default is a mapping counts as absent, so that `kwargs:` may be left empty.
    """
    value = omegaconf_select(cfg, key, default)
    if value is None and isinstance(default, Mapping):
        value = default
    OmegaConf.update(cfg, key, value, merge=False, force_add=True)


# ---- finite rows --------------------------------------------------------------------------------


def _1d_filter(tensor: Tensor) -> Tensor:
    return tensor.isfinite()


def _2d_filter(tensor: Tensor) -> Tensor:
    return tensor.isfinite().all(dim=1)


def _finite_rows(tensor: Tensor) -> Tensor:
    if tensor.ndim not in (1, 2):
        raise RuntimeError(
            f"only 1-d and 2-d tensors can be filtered, not {tensor.ndim} dimensions"
        )
    return (_1d_filter if tensor.ndim == 1 else _2d_filter)(tensor)


def _multi_input_filter(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    kept = torch.stack([_finite_rows(tensor) for tensor in tensors]).all(dim=0)
    return [tensor[kept] for tensor in tensors], kept


def _single_input_filter(tensor: Tensor) -> tuple[Tensor, Tensor]:
    (filtered,), kept = _multi_input_filter([tensor])
    return filtered, kept


def filter_inf_n_nan(tensors: Tensor | Sequence[Tensor], return_indexes: bool = False) -> Any:
    """Drop the rows that hold an infinity or a NaN; of several tensors, the rows bad in any.

    Args:
        tensors: a (N,) or (N, D) tensor, or several with the same N.
        return_indexes: also return the (N,) bool mask of the rows kept.

    Returns:
        the filtered tensor, or the list of them, and the mask when asked.

    Raises:
        RuntimeError: for a tensor of another rank.
    """
    keep = _single_input_filter if isinstance(tensors, Tensor) else _multi_input_filter
    filtered, kept = keep(tensors)  # type: ignore[operator]
    return (filtered, kept) if return_indexes else filtered


class FilterInfNNan(nn.Module):
    """Runs `module` and drops the non-finite rows of what it returns; attributes are `module`'s."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return filter_inf_n_nan(self.module(x))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":
                raise
            return getattr(self.module, name)


# ---- ranks --------------------------------------------------------------------------------------


def distributed() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def get_rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if distributed() else 0


def get_world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if distributed() else 1


class GatherLayer(torch.autograd.Function):
    """All ranks' tensors as a tuple; the backward pass sums each rank's gradients for its own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, ...]:
        if not distributed():
            return (x.clone(),)
        output = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(output, x.contiguous())
        return tuple(output)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        gradients = torch.stack(grads)
        if distributed():
            dist.all_reduce(gradients)
        return gradients[get_rank()]


def gather(X: Tensor, dim: int = 0) -> Tensor:
    """`X` of every rank joined along `dim`, differentiable; `X` itself without a process group."""
    if not distributed():
        return X
    if not X.is_floating_point():
        return concat_all_gather_no_grad(X, dim)
    return torch.cat(GatherLayer.apply(X), dim=dim)


@torch.no_grad()
def concat_all_gather_no_grad(tensor: Tensor, dim: int = 0) -> Tensor:
    """`tensor` of every rank joined along `dim`, without gradient."""
    if not distributed():
        return tensor
    output = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(output, tensor.contiguous())
    return torch.cat(output, dim=dim)


# ---- data ---------------------------------------------------------------------------------------


def compute_dataset_size(
    dataset: str | None = None,
    train: bool | None = True,
    data_path: str | Path | None = None,
    data_format: str | None = "image_folder",
    no_labels: bool | None = False,
    data_fraction: float | None = -1,
) -> int:
    """How many images a dataset has, without loading it.

    Args:
        dataset: name; cifar10, cifar100, stl10 and digits are known, else files are counted.
        train: the training part rather than the validation part.
        data_path: folder `<class>/<image>` (flat with `no_labels`), the file of format `h5`, or
            the shards of format `webdataset`.
        data_format: `image_folder`, `h5`, `webdataset` or `dali`.
        no_labels: the folder has no class folders.
        data_fraction: part that is used, -1 for all.
    """
    name = (dataset or "").lower()
    if data_format == "h5":
        from solo.data.h5_dataset import H5Dataset

        size = len(H5Dataset(dataset, data_path))
    elif data_format == "webdataset" and data_path is not None:
        from solo.data.shards.index import read_shards

        size = len(read_shards(data_path, "data_path").places)
    elif name in _SIZES:
        size = _SIZES[name][0 if train else 1]
    elif data_path is None or not os.path.isdir(data_path):
        raise DataError(f"cannot count the images of '{dataset}': no folder at '{data_path}'")
    elif no_labels:
        size = len(os.listdir(data_path))
    else:
        classes = [entry for entry in os.scandir(data_path) if entry.is_dir()]
        size = sum(len(os.listdir(entry)) for entry in classes)
    return size if data_fraction in (None, -1) else int(size * data_fraction)


# ---- modules and parameters ---------------------------------------------------------------------


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Fill `tensor` from the normal law cut to [a, b], in place."""
    return nn.init.trunc_normal_(tensor, mean, std, a, b)


def make_contiguous(module: nn.Module) -> None:
    """Make every parameter of `module` contiguous, in place (DDP's buckets want it)."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.set_(parameter.contiguous())


def _layer_ids(model: nn.Module) -> dict[str, int]:
    """Depth of every parameter, 0 at the input: timm's own grouping, or one layer per child."""
    if hasattr(model, "group_matcher"):
        from timm.models import group_parameters

        return group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    children = {name: index for index, (name, _) in enumerate(model.named_children())}
    return {name: children.get(name.split(".")[0], 0) for name, _ in model.named_parameters()}


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Sequence[str] = (),
    layer_decay: float = 0.75,
) -> list[dict[str, Any]]:
    """Parameter groups with a learning rate that falls by `layer_decay` per layer below the top.

    Source: BEiT / MAE fine-tuning. 1-d parameters and the named ones get no weight decay.

    Returns:
        groups `{"lr_scale", "weight_decay", "params"}`; whoever builds the optimizer multiplies
        the learning rate by `lr_scale`.
    """
    layer_ids = _layer_ids(model)
    top = max(layer_ids.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim != 1 and name not in set(no_weight_decay_list)
        layer = layer_ids.get(name, top)
        empty = {
            "lr_scale": layer_decay ** (top - layer),
            "weight_decay": weight_decay if decays else 0.0,
            "params": [],
        }
        groups.setdefault((layer, decays), empty)["params"].append(parameter)
    return list(groups.values())


def remove_bias_and_norm_from_weight_decay(
    parameter_groups: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Split each group: parameters with at most one dimension go to a group without weight decay.

    Its name gets the ending `_no_decay`; every other key is copied; empty groups are left out.
    """
    out = []
    for group in parameter_groups:
        params = list(group["params"])
        no_decay = {**group, "weight_decay": 0, "params": [p for p in params if p.ndim <= 1]}
        if group.get("name"):
            no_decay["name"] = f"{group['name']}_no_decay"
        decay = {**group, "params": [p for p in params if p.ndim > 1]}
        out += [part for part in (decay, no_decay) if part["params"]]
    return out


# ---- position tables ----------------------------------------------------------------------------


def generate_2d_sincos_pos_embed(
    embed_dim: int, grid_size: int, cls_token: bool = False
) -> np.ndarray:
    """Sine-cosine table of a square grid (MAE): (grid_size^2 [+1 zero row first], embed_dim)."""
    axis = np.arange(grid_size, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis)).reshape(2, 1, grid_size, grid_size)  # w varies fastest
    table = generate_2d_sincos_pos_embed_from_grid(embed_dim, grid)
    return np.concatenate([np.zeros((1, embed_dim)), table]) if cls_token else table


def generate_2d_sincos_pos_embed_from_grid(embed_dim: int, grid: np.ndarray) -> np.ndarray:
    """Half of the columns from grid[0], half from grid[1]; (positions, embed_dim)."""
    if embed_dim % 2:
        raise ValueError(f"embed_dim must be even, got {embed_dim}")
    halves = [generate_1d_sincos_pos_embed_from_grid(embed_dim // 2, axis) for axis in grid]
    return np.concatenate(halves, axis=1)


def generate_1d_sincos_pos_embed_from_grid(embed_dim: int, pos: np.ndarray) -> np.ndarray:
    """sin then cos of pos / 10000^(2i/embed_dim); (positions, embed_dim)."""
    if embed_dim % 2:
        raise ValueError(f"embed_dim must be even, got {embed_dim}")
    omega = 1.0 / 10000 ** (np.arange(embed_dim // 2, dtype=float) / (embed_dim / 2.0))
    angles = np.outer(np.asarray(pos).reshape(-1), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
