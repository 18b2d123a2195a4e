# SPDX-License-Identifier: MIT
"""`data.path`: a folder of the user's own images, and what follows from it and from the machine.

Keys that say `auto` get their values here, before anything else reads them; the others stay as
they are. `settle` says what it has chosen, in lines for the user.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from solo.args import schema
from solo.args.check import select
from solo.args.common import AUTO, check_given, cores, processes, required
from solo.errors import ConfigError

if TYPE_CHECKING:
    from solo.data.datasets.layout import Layout
    from solo.data.datasets.sampled import Sampled

SMALL = 32  # pixels up to which a ResNet keeps the resolution in its stem (CIFAR's)
FINE = 64  # up to which that stem may be worth its price: many times that of the other
BLUR_FROM = 96  # pixels from which on views are blurred, as SimCLR leaves it out on CIFAR
RESIDENT_SHARE = 0.5  # of the free memory that images may take before they are read from files
_LABELS_NEEDED = ("supcon", "supervised", "s4l")
_SIZED = ("vit", "deit", "beit", "eva", "cait", "swin")  # encoders that are built for one size


def settle(cfg: DictConfig) -> list[str]:
    """Give every key of `cfg` that says `auto` its value, in place, for the images in `data.path`.

    Returns:
        lines that say what was found and chosen; none without `data.path`, or the second time.

    Raises:
        ConfigError: `data.path` or `image_size` is missing, or the method needs labels that are
            not there.
        DataError: there are no images in the folder.
    """
    if OmegaConf.is_config(cfg.get("data")) and OmegaConf.is_missing(cfg.data, "path"):
        raise ConfigError(
            "data.path is missing: write data.path=FOLDER, a folder that holds your images"
        )
    path = select(cfg, "data.path")
    if path is None or select(cfg, "data.train_path") is not None:
        return []
    OmegaConf.set_struct(cfg, False)
    check_given(cfg, schema.Pretrain)
    size = required(cfg, "image_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 8:
        raise ConfigError(f"image_size={size}: a whole number of pixels, at least 8")
    from solo.data.datasets.layout import layout_of
    from solo.data.datasets.sampled import sample

    no_labels = select(cfg, "data.no_labels", AUTO)
    layout = layout_of(path, labelled=None if no_labels == AUTO else not no_labels)
    images = sample(layout.files, size, value_range=select(cfg, "data.value_range") or ())
    lines = [_found(layout, images)]
    for part in (_set_data, _set_format, _set_batch, _set_method, _set_encoder, _set_views):
        lines += part(cfg, layout, images, size)
    return [*lines, *_set_precision(cfg)]


def settle_evaluation(cfg: DictConfig, trained: dict[str, Any]) -> None:
    """The same for an evaluation of a run: `data.path` is its folder where it says `auto`.

    Args:
        cfg: changed in place.
        trained: configuration of the run.

    Raises:
        ConfigError: the run has no such folder, or there are no labels.
        DataError: there are no images in the folder.
    """
    path = select(cfg, "data.path")
    if path is None or select(cfg, "data.train_path") is not None:
        return
    from solo.data.datasets.layout import layout_of

    if path == AUTO:
        path = (trained.get("data") or {}).get("path")
    if path is None:
        raise ConfigError(
            "data.path is missing: the run was not trained on a folder of own images. Write "
            "data.path=FOLDER with images in class folders."
        )
    layout = layout_of(path)
    if not layout.labelled:
        raise ConfigError(
            f"data.path: '{path}' has no class folders, so there is no accuracy to measure. Give "
            "another folder with classes, or look at the features (solo-embed)."
        )
    OmegaConf.set_struct(cfg, False)
    cfg.data.path, cfg.data.train_path = str(path), str(layout.train)
    cfg.data.val_path = None if layout.val is None else str(layout.val)
    cfg.data.val_fraction = select(cfg, "data.val_fraction", 0.1) if layout.val is None else 0.0
    if _is_auto(cfg, "optimizer.batch_size"):
        cfg.optimizer.batch_size = min(256, _power_of_two(max(2, len(layout.files) // 8)))
    if _is_auto(cfg, "precision"):
        _set_precision(cfg)


def _found(layout: Layout, images: Sampled) -> str:
    what = f"{layout.classes} classes" if layout.labelled else "no labels"
    width, height = images.one_size or (0, 0)
    sizes = f"{width}x{height}" if images.one_size else f"several sizes, median side {images.side}"
    grey = ", grey" if images.grey else ""
    left = "".join(f"; left out: {text}" for text in layout.left_out)
    return f"images: {len(layout.files):,} in {layout.train}, {what}, {sizes} pixels{grey}{left}"


def _is_auto(cfg: DictConfig, key: str) -> bool:
    return select(cfg, key) == AUTO


def _set_data(cfg: DictConfig, layout: Layout, images: Sampled, size: int) -> list[str]:
    data = cfg.data
    if not layout.labelled and cfg.method in _LABELS_NEEDED:
        raise ConfigError(
            f"method={cfg.method} learns from labels, but '{data.path}' has no class folders. Sort "
            "the images into one folder per class, or take another method, such as byol."
        )
    data.train_path, data.no_labels = str(layout.train), not layout.labelled
    data.val_path = None if layout.val is None else str(layout.val)
    if not layout.labelled:
        data.val_fraction = 0.0
        return ["validation: none without labels; RankMe and the loss say how it gets on"]
    if layout.val is not None:
        data.val_fraction = 0.0
        return [f"validation: {layout.val}"]
    if layout.largest < 2:
        data.val_fraction = 0.0
        return ["validation: none, as no class has two images"]
    share = select(cfg, "data.val_fraction", 0.0)
    if not share:
        return ["validation: none (data.val_fraction=0)"]
    return [f"validation: {share:.0%} of every class, listed in validation.json beside the run"]


def _set_format(cfg: DictConfig, layout: Layout, images: Sampled, size: int) -> list[str]:
    """Resident where the images take at most half of the free memory, else from their files."""
    from solo.data.resident.memory import free_host_memory, gigabytes

    data = cfg.data
    side = select(cfg, "data.resident_size", AUTO)
    side = min(images.side, 2 * size) if side == AUTO else side
    need = 3 * len(layout.files) * (side or images.side) ** 2
    free = free_host_memory()
    fits = free is None or need * processes(cfg) <= RESIDENT_SHARE * free
    chosen = data.format
    if chosen == AUTO:
        chosen = data.format = "resident" if fits else "image_folder"
    data.resident_size = side if chosen == "resident" else None
    if chosen != "resident":
        return [f"format: {chosen} ({gigabytes(need)} decoded, {gigabytes(free or 0)} free)"]
    cut = "" if images.one_size == (side, side) else ", the shorter side resized, the centre cut"
    return [f"format: resident, {gigabytes(need)} in memory ({side}x{side}{cut})"]


def _set_batch(cfg: DictConfig, layout: Layout, images: Sampled, size: int) -> list[str]:
    share = select(cfg, "data.val_fraction", 0.0) or 0.0
    n = max(1, int(len(layout.files) * (1 - share)) // processes(cfg))
    if _is_auto(cfg, "optimizer.batch_size"):
        wanted = 128 if cfg.method == "wmse" else 64
        if _has_gpu(cfg):
            wanted = 256 if size <= 128 else 128
        cfg.optimizer.batch_size = min(wanted, _power_of_two(max(2, n // 4)))
    if _is_auto(cfg, "scheduler.warmup_epochs"):
        cfg.scheduler.warmup_epochs = min(10, cfg.max_epochs / 10)
    return [f"batch: {cfg.optimizer.batch_size} images, {cfg.max_epochs} epochs"]


def _power_of_two(n: int) -> int:
    return 1 << (n.bit_length() - 1)


def _has_gpu(cfg: DictConfig) -> bool:
    if select(cfg, "accelerator", AUTO) == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def _set_method(cfg: DictConfig, layout: Layout, images: Sampled, size: int) -> list[str]:
    """Queues, prototypes and parts of the batch, none larger than the images can fill."""
    batch, n = cfg.optimizer.batch_size * processes(cfg), len(layout.files)
    whitening = min(128, cfg.optimizer.batch_size)
    rules: dict[str, Callable[[], Any]] = {
        "queue_size": lambda: batch * max(1, min(65536, n) // batch),
        "num_prototypes": lambda: _prototypes(cfg.method, n),
        "whitening_size": lambda: whitening,
        "proj_output_dim": lambda: min(64, max(2, whitening // 2)),
    }
    for name, rule in rules.items():
        if _is_auto(cfg, f"method_kwargs.{name}"):
            cfg.method_kwargs[name] = rule()
    return []


def _prototypes(method: str, n: int) -> int | list[int]:
    """3,000 prototypes on CIFAR's 50,000 images, and that share of fewer."""
    count = min(3000, max(2, n // 16))
    return [count] * 3 if method == "deepclusterv2" else count


def _set_encoder(cfg: DictConfig, layout: Layout, images: Sampled, size: int) -> list[str]:
    """Stem, size and patches of the encoder, and local crops that are whole patches."""
    encoder, name = cfg.backbone, str(required(cfg, "backbone.name"))
    patch, lines = 1, []
    if _is_auto(cfg, "backbone.small_stem"):
        encoder.small_stem = size <= SMALL
        if name.startswith("resnet"):
            lines.append(f"encoder: {name}, {_stem(encoder.small_stem, size)}")
    if name.startswith(_SIZED):
        kwargs = {**(encoder.get("kwargs") or {})}
        kwargs.setdefault("img_size", size)
        if not name.startswith("swin"):
            kwargs.setdefault("patch_size", _patch(size))
        patch = kwargs.get("patch_size", 4)
        encoder.kwargs = kwargs
        lines.append(f"encoder: {name}, patches of {patch} at {size} pixels")
    if _is_auto(cfg, "local_size"):
        cfg.local_size = patch * -(-3 * size // (7 * patch))
    return lines


def _stem(small: bool, size: int) -> str:
    if small:
        return f"CIFAR's 3x3 stem at {size} pixels"
    other = " (backbone.small_stem=True sees finer detail and is many times slower)"
    return f"7x7 stem at {size} pixels{other if size <= FINE else ''}"


def _patch(size: int) -> int:
    """The largest patch of at most 16 pixels that divides the side into at least 8 patches.

    Raises:
        ConfigError: there is none that leaves at most 32 along a side.
    """
    for patch in range(min(16, max(1, size // 8)), 0, -1):
        if size % patch == 0 and size // patch <= 32:
            return patch
    near = max(8, round(size / 16) * 16)
    raise ConfigError(f"image_size={size} does not divide into patches for a ViT; {near} does")


def _set_views(cfg: DictConfig, layout: Layout, images: Sampled, size: int) -> list[str]:
    """Views get the statistics of the images, and blur only where there is something to blur."""
    channels = (cfg.backbone.get("kwargs") or {}).get("in_chans") or 3
    statistics = {"mean": list(images.mean), "std": list(images.std)}
    if channels == 1:  # a grey picture has one value in all three
        statistics = {"mean": [images.mean[0]], "std": [images.std[0]]}
    for view in cfg.augmentations:
        for name, value in statistics.items() if channels in (1, 3) else ():
            view.setdefault(name, value)
        if size < BLUR_FROM and "gaussian_blur" in view:
            view.gaussian_blur.prob = 0.0
    OmegaConf.resolve(cfg.augmentations)
    return []


def _set_precision(cfg: DictConfig) -> list[str]:
    if not _is_auto(cfg, "precision"):
        return []
    cfg.precision, device = "32-true", f"CPU, {cores()} cores"
    if _has_gpu(cfg):
        import torch

        cfg.precision = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        device = f"{processes(cfg)} GPU"
    return [f"machine: {device}, precision {cfg.precision}"]
