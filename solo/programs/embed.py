# SPDX-License-Identifier: MIT
"""Features of a folder of images as a file: paths, labels and one row per image."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solo.data.datasets.layout import TRAIN, VAL
from solo.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

EXAMPLE = """\
RUN is the folder of a run, one of its checkpoints, or an exported file. FOLDER holds images at any
depth; where they lie in class folders, these are the labels.

  solo-embed trained_models/byol/0 photos -o features.npy
      features.npy       (N, F) float32, one row per image, in the order of features.csv
      features.csv       path,label
  solo-embed trained_models/byol/0 photos -o features.parquet
      columns path, label, feature (a list of floats); needs pandas and pyarrow
  solo-embed trained_models/byol/0 photos -o features.npz
      arrays features, paths, labels
"""
_PARTS = {*TRAIN, *VAL, "images"}
FORMATS = (".npy", ".npz", ".parquet")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; 0, or 2 after a message for a mistake of the user's."""
    from solo.args.common import default_workers
    from solo.args.dataset import at_least
    from solo.programs.app import exit_code

    parser = argparse.ArgumentParser(
        prog="solo-embed",
        description="Features of a folder of images, as the run's own evaluation shows them.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of a run, a checkpoint, or an exported file")
    parser.add_argument("folder", type=Path, help="folder of images, in subfolders or not")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("features.npy"),
        help="file to write: .npy, .npz or .parquet (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--encoder", choices=("online", "momentum"), default="online",
        help="which encoder of a momentum method (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size", type=at_least(int, 1), default=64, help="images at once (default: 64)"
    )
    parser.add_argument(
        "--num_workers", type=at_least(int, 0), default=default_workers(),
        help="threads that read images (default: the cores, %(default)s here)",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", help="auto (the GPU where there is one), cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "--skip_unreadable", action="store_true", help="leave broken files out, with a message"
    )
    args = parser.parse_args(argv)
    return exit_code(lambda: print(_run(args)))


def _run(args: argparse.Namespace) -> str:
    from solo.checkpoints import load_pretrained
    from solo.programs.evaluation import device_of

    if args.output.suffix not in FORMATS:
        raise ConfigError(f"--output {args.output}: the file ends in {', '.join(FORMATS)}")
    device = device_of(args.device)
    encoder = load_pretrained(args.run, args.encoder)
    paths, labels = images_of(args.folder)
    options = {"batch_size": args.batch_size, "threads": args.num_workers, "device": device}
    kept, features = embed(encoder, paths, skip_unreadable=args.skip_unreadable, **options)
    names = [paths[i].relative_to(args.folder).as_posix() for i in kept]
    files = write(args.output, features, names, [labels[i] for i in kept])
    size = encoder.preprocess.size
    return (
        f"{len(features):,} images of {args.folder} at {size} pixels, {features.shape[1]} features "
        f"each: {' and '.join(map(str, files))}"
    )


def images_of(folder: Path) -> tuple[list[Path], list[str]]:
    """All images below a folder, sorted, and their labels: the first folder on the way to each that
    is no part of a data set (`train`, `val`, ...); empty where there is none.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    from solo.data.datasets.folders import images_below, require_folder

    paths = images_below(require_folder(folder, "FOLDER"))
    if not paths:
        raise DataError(f"FOLDER: there are no images in '{folder}'.")
    parts = [path.relative_to(folder).parts[:-1] for path in paths]
    return paths, [next((p for p in part if p.lower() not in _PARTS), "") for part in parts]


def embed(
    encoder: nn.Module,
    paths: Sequence[Path],
    batch_size: int = 64,
    threads: int = 1,
    device: Any = "cpu",
    skip_unreadable: bool = False,
) -> tuple[list[int], np.ndarray]:
    """Features of images by an encoder of `solo.load_pretrained`.

    Args:
        encoder: with its `preprocess`.
        paths: of the images.
        batch_size: images that are encoded at once.
        threads: that read images.
        device: where to encode.
        skip_unreadable: leave broken files out, with a line for each, instead of stopping.

    Returns:
        (positions of the images in `paths`; their features (N, F), float32).

    Raises:
        ReadError: a file is broken.
        DataError: all of them are.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from solo.programs.evaluation import sizes_explained

    if not hasattr(encoder, "preprocess"):
        raise ConfigError("the file does not say which images its encoder takes: export it again")
    model, kept, rows = encoder.to(device).eval(), [], []
    with torch.inference_mode(), tqdm(total=len(paths), unit=" images", desc="Features") as bar:
        for batch in _batches(encoder, paths, batch_size, threads, skip_unreadable):
            with sizes_explained():
                out = model(torch.stack([image for _, image in batch]).to(device))
            rows.append(out.float().cpu().numpy())
            kept += [index for index, _ in batch]
            bar.update(len(batch))
    if not rows:
        raise DataError(f"none of {len(paths):,} images can be read")
    return kept, np.concatenate(rows)


def _batches(
    encoder: nn.Module, paths: Sequence[Path], size: int, threads: int, skip: bool
) -> Iterator[list]:
    """Lists of (position, image tensor), at most `size` long."""
    from concurrent.futures import ThreadPoolExecutor

    from solo.data.datasets.images import ReadError

    def read(index: int) -> Any:
        try:
            return index, encoder.preprocess(paths[index])
        except ReadError as error:
            if not skip:
                raise
            print(f"left out: {error}", file=sys.stderr)
            return None

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(paths), size):
            found = pool.map(read, range(start, min(start + size, len(paths))))
            if batch := [each for each in found if each is not None]:
                yield batch


def write(
    output: Path, features: np.ndarray, paths: Sequence[str], labels: Sequence[str]
) -> list[Path]:
    """Write features with the paths and labels of their images; returns the files.

    Raises:
        ConfigError: a package for parquet is missing.
        OutputError: the disk refuses a file.
    """
    import csv

    import numpy as np

    from solo.files.whole import whole_file

    if output.suffix == ".parquet":
        with whole_file(output) as partial:
            _table(features, paths, labels, partial)
        return [output]
    with whole_file(output) as partial, partial.open("wb") as file:
        if output.suffix == ".npz":
            np.savez(file, features=features, paths=np.array(paths), labels=np.array(labels))
            return [output]
        np.save(file, features)
    index = output.with_suffix(".csv")
    with whole_file(index) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *zip(paths, labels, strict=True)])
    return [output, index]


def _table(features: np.ndarray, paths: Sequence[str], labels: Sequence[str], file: Path) -> None:
    try:
        import pandas as pd

        columns = {"path": list(paths), "label": list(labels), "feature": list(features)}
        pd.DataFrame(columns).to_parquet(file)
    except ImportError as error:
        raise ConfigError(
            "parquet needs pandas and pyarrow: pip install pandas pyarrow, or write a .npz file"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
