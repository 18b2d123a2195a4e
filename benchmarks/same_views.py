# SPDX-License-Identifier: MIT
"""How far the formats' views lie from those of image folders, for equal parameters.

    python benchmarks/same_views.py FOLDER [--size 224]

FOLDER holds class folders of JPEGs. Reference is torchvision on PIL images, as `image_folder` has
it. Each step is measured by itself: validation view, random crop, colour jitter, blur. `inside`
leaves out the outermost pixels of a crop, where DALI repeats the edge and Pillow does not.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import nvidia.dali
import PIL
import torch
import torchvision
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as TF

from solo.data.classification_dataloader import build_custom_pipeline
from solo.data.dali import colour, geometry
from solo.data.datasets.images import read_image
from solo.data.views.batched.colour import ORDERS, ColorJitter
from solo.data.views.batched.crop import crop_boxes, resample, resize_weights, rows_come_first
from solo.data.views.batched.filters import blurred, box_radius
from solo.data.views.tensor_crops import resized as tensor_resized

BICUBIC = T.InterpolationMode.BICUBIC
ADJUST = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)


def in_dali(function: Callable, *inputs: list) -> list[np.ndarray]:
    """`function` of graph nodes on one array per image."""

    @pipeline_def(
        batch_size=len(inputs[0]), num_threads=1, device_id=None, enable_conditionals=True
    )
    def graph():
        nodes = []
        for given in inputs:
            arrays = [np.array(array, order="C") for array in given]
            layout = "HWC" if arrays[0].ndim == 3 else None
            nodes.append(fn.external_source(itertools.repeat(arrays), layout=layout))
        return function(*nodes)

    pipe = graph()
    pipe.build()
    return [np.array(sample) for sample in pipe.run()[0]]


def pixels(image: Image.Image) -> Tensor:
    """(1, 3, H, W) uint8."""
    return TF.pil_to_tensor(image)[None]


def hwc(x: Tensor) -> np.ndarray:
    """(1 or nothing, 3, H, W) levels to (H, W, 3)."""
    return x.reshape(x.shape[-3:]).permute(1, 2, 0).numpy()


def validation(images: list[Image.Image], size: int) -> dict[str, list]:
    """Resize of the shorter side and centre crop."""
    steps = T.Compose(build_custom_pipeline(size)["T_val"].transforms[:2])
    shorter = round(size * 256 / 224)

    def graph(x):
        small = geometry.shorter_side_resized(x, shorter, types.INTERP_LINEAR)
        return geometry.center_crop(small, size)

    return {"image_folder": [steps(i) for i in images], "dali": in_dali(graph, images)}


def crops(images: list[Image.Image], size: int) -> dict[str, list]:
    """RandomResizedCrop, bicubic, of the same boxes."""
    u = torch.rand(len(images), 22, generator=torch.Generator().manual_seed(0))
    boxes = [
        torch.stack(crop_boxes(u[i : i + 1], image.height, image.width, (0.08, 1.0)), 1)[0]
        for i, image in enumerate(images)
    ]
    found: dict[str, list] = {"image_folder": [], "data.augment=device": [], "resident": []}

    def graph(x, box):
        part = fn.slice(x, box[:2], box[2:], axes=[0, 1])
        return geometry.resized(part, box[2], box[3], size, size, types.INTERP_CUBIC)

    found["dali"] = in_dali(graph, images, [box.int().numpy() for box in boxes])
    for image, box in zip(images, boxes, strict=True):
        top, left, h, w = (int(v) for v in box)
        found["image_folder"].append(TF.resized_crop(image, top, left, h, w, [size, size], BICUBIC))
        x = pixels(image)
        part = x[0, :, top : top + h, left : left + w]
        found["data.augment=device"].append(hwc(tensor_resized(part, (size, size))))
        rows = resize_weights(box[:1], box[2:3], image.height, size)
        columns = resize_weights(box[1:2], box[3:], image.width, size)
        order = rows_come_first(box[2:3], box[3:], (size, size))
        found["resident"].append(hwc(resample(x, rows, columns, order)))
    return found


def jitters(images: list[Image.Image]) -> dict[str, list]:
    """ColorJitter of strengths 0.4, 0.4, 0.2 and 0.1, always."""
    jitter = ColorJitter(1.0, 0.4, 0.4, 0.2, 0.1)
    u = torch.rand(len(images), jitter.draws, generator=torch.Generator().manual_seed(1))
    _, order, factors, turns = jitter.drawn(u)
    parameters = (order.int().numpy(), factors.numpy(), turns.numpy())
    found: dict[str, list] = {"dali": in_dali(colour.jittered, images, *map(list, parameters))}
    found["image_folder"] = list(images)
    for i in range(len(images)):
        values = [*factors[i].tolist(), float(turns[i])]
        for kind in ORDERS[int(order[i])]:
            found["image_folder"][i] = ADJUST[kind](found["image_folder"][i], values[kind])
    batched = [hwc(jitter(pixels(image).float(), u[i : i + 1])) for i, image in enumerate(images)]
    return {**found, "resident and data.augment=device": batched}


def blurs(images: list[Image.Image]) -> dict[str, list]:
    """Gaussian blurs of 0.1 to 2 pixels, evenly."""
    sigmas = torch.linspace(0.1, 2.0, len(images))
    plain = [
        i.filter(ImageFilter.GaussianBlur(float(s))) for i, s in zip(images, sigmas, strict=True)
    ]
    batched = [
        hwc(blurred(pixels(image).float(), box_radius(sigmas[i : i + 1])))
        for i, image in enumerate(images)
    ]
    in_graph = in_dali(colour.blurred, images, list(sigmas.numpy()))
    return {"image_folder": plain, "dali": in_graph, "resident and data.augment=device": batched}


def report(step: str, found: dict[str, list], edge: int) -> None:
    """A row of the table per format; differences are levels of 255."""
    wanted = [np.asarray(image, dtype=float) for image in found.pop("image_folder")]
    for name, images in found.items():
        off = [np.abs(np.asarray(a, dtype=float) - b) for a, b in zip(images, wanted, strict=True)]
        middle = np.stack([x[edge:-edge, edge:-edge] for x in off])
        mean, top = np.mean([x.mean() for x in off]), max(x.max() for x in off)
        beyond = 100 * (middle > 1).mean()
        print(
            f"| {step} | `{name}` | {mean:.4f} | {beyond:.4f}% | {middle.max():.0f} | {top:.0f} |"
        )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = [read_image(path) for path in sorted(args.folder.glob("*/*.*"))]
    print(f"{len(images)} images; DALI {nvidia.dali.__version__}, Pillow {PIL.__version__},")
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}")
    print("| step | format | mean | over 1, inside | most, inside | most |")
    print("|---|---|---|---|---|---|")
    report("validation view", validation(images, args.size), 1)
    found = crops(images, args.size)
    views = found["image_folder"]
    report("random crop", found, 8)
    report("colour jitter", jitters(views), 1)
    report("blur", blurs(views), 1)


if __name__ == "__main__":
    main()
