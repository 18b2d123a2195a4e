# SPDX-License-Identifier: MIT
"""Small helpers: config look-up, filters, gathering over ranks, parameter groups, tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from solo.data.catalogue import known
from solo.errors import DataError
from solo.utils.param_groups import param_groups_layer_decay, remove_bias_and_norm_from_weight_decay
from solo.utils.ranks import (
    GatherLayer,
    concat_all_gather_no_grad,
    gather,
    get_rank,
    get_world_size,
)

__all__ = [
    "FilterInfNNan",
    "GatherLayer",
    "compute_dataset_size",
    "concat_all_gather_no_grad",
    "filter_inf_n_nan",
    "gather",
    "generate_1d_sincos_pos_embed_from_grid",
    "generate_2d_sincos_pos_embed",
    "generate_2d_sincos_pos_embed_from_grid",
    "get_rank",
    "get_world_size",
    "make_contiguous",
    "omegaconf_select",
    "param_groups_layer_decay",
    "remove_bias_and_norm_from_weight_decay",
    "set_default",
    "trunc_normal_",
]

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
    elif known(name).images is not None:
        size = known(name).images[0 if train else 1]
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
