# SPDX-License-Identifier: MIT
"""Command-line arguments about data, shared by `main_knn.py` and `main_umap.py`."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from solo import extensions
from solo.args.common import default_workers
from solo.data.catalogue import info_of, single_label
from solo.errors import ConfigError, did_you_mean
from solo.registry import import_plugins

# Legacy augmentation arguments: one value per pipeline. name -> (type, default).
_AUGMENTATIONS = {
    "num_crops_per_aug": (int, [2]),
    "brightness": (float, None),
    "contrast": (float, None),
    "saturation": (float, None),
    "hue": (float, None),
    "color_jitter_prob": (float, [0.8]),
    "gray_scale_prob": (float, [0.2]),
    "horizontal_flip_prob": (float, [0.5]),
    "gaussian_prob": (float, [0.5]),
    "solarization_prob": (float, [0.0]),
    "equalization_prob": (float, [0.0]),
    "crop_size": (int, [224]),
    "min_scale": (float, [0.08]),
    "max_scale": (float, [1.0]),
}


def at_least(kind: type, least: float) -> Callable[[str], float]:
    """A type of an argument that refuses smaller numbers."""

    def number(text: str) -> float:
        value = kind(text)
        if not value >= least:
            raise ArgumentTypeError(f"{text} is out of range: it must be at least {least:g}")
        return value

    number.__name__ = kind.__name__  # argparse says "invalid int value"
    return number


def dataset_args(parser: ArgumentParser) -> None:
    """Add the arguments that say which dataset lies where."""
    parser.add_argument("--dataset", required=True, help=", ".join(single_label()))
    parser.add_argument(
        "--train_data_path", type=Path, default=None, help="required, except for digits"
    )
    parser.add_argument("--val_data_path", type=Path, default=None)
    parser.add_argument(
        "--data_format",
        choices=["image_folder", "dali", "h5", "webdataset"],
        default="image_folder",
    )
    parser.add_argument("--data_fraction", type=float, default=-1.0)
    parser.add_argument(
        "--value_range",
        type=float,
        nargs=2,
        metavar=("BLACK", "WHITE"),
        help="of int32 or float images; by default as the run of the checkpoint had it",
    )
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="leave broken files out, and count them"
    )
    parser.add_argument(
        "--data_exif",
        choices=["ignore", "apply"],
        help="turn images as their EXIF orientation says; default: as the encoder was trained",
    )


def augmentations_args(parser: ArgumentParser) -> None:
    """Add the augmentation arguments of solo-learn's programs before Hydra."""
    for name, (kind, default) in _AUGMENTATIONS.items():
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", default=default, required=default is None
        )
    parser.add_argument("--debug_augmentations", action="store_true")


def linear_augmentations_args(parser: ArgumentParser) -> None:
    """Add the augmentation arguments of an evaluation."""
    parser.add_argument("--crop_size", type=int, nargs="+", default=[224])


def custom_dataset_args(parser: ArgumentParser) -> None:
    """Add the arguments that only a dataset of the user's own needs."""
    parser.add_argument("--no_labels", action="store_true")
    trained = "by default as the run of the checkpoint had it"
    parser.add_argument("--mean", type=float, nargs="+", help=f"of each channel; {trained}")
    parser.add_argument("--std", type=float, nargs="+", help=f"of each channel; {trained}")
    parser.add_argument("--image_size", type=at_least(int, 1), help=f"side in pixels; {trained}")


def evaluation_args(parser: ArgumentParser) -> None:
    """Add the arguments about the checkpoint under evaluation and the machine."""
    parser.add_argument("--pretrained_checkpoint_dir", type=str, required=True)
    parser.add_argument("--batch_size", type=at_least(int, 1), default=16)
    parser.add_argument(
        "--num_workers", type=at_least(int, 0), default=default_workers(), help="%(default)s here"
    )
    parser.add_argument("--eval_encoder", choices=["online", "momentum"], default="online")
    for extension in extensions.registered():
        extension.evaluation_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--imports",
        type=plugin,
        nargs="+",
        default=[],
        help="modules of your own that register methods, encoders or data sets",
    )


def plugin(name: str) -> str:
    """`name` of a module, which is imported; a usage error if that fails."""
    try:
        import_plugins(name)
    except ConfigError as error:
        raise ArgumentTypeError(str(error)) from error
    return name


def check_paths(parser: ArgumentParser, args) -> None:
    """Stop with a usage error when a dataset needs `--train_data_path` and has none."""
    if args.dataset not in single_label():
        hint = did_you_mean(args.dataset, single_label())
        parser.error(f"argument --dataset: '{args.dataset}' is unknown. {hint}")
    if info_of(args.dataset).path != "none" and args.train_data_path is None:
        parser.error("the following arguments are required: --train_data_path")
