# SPDX-License-Identifier: MIT
"""Views per second and core: batched augmentation against Pillow per sample, and kornia.

    python benchmarks/augmentation.py [--recipe cifar/asymmetric] [--batch 256] [--seconds 4]
        [--device cpu] [--skip-compile]

One thread, views of all pipelines of the recipe in equal parts, random images of CIFAR's size (or
of 1.15 times the crop). On the CPU seconds are those that the core spent on us. Each variant runs
in turn several times; the best round counts, because what other programs do to the machine only
makes rounds slower. kornia is measured where it is installed; its crops and colours follow other
laws, so it only shows what a batch costs there.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import PIL
import torch
import yaml
from torchvision.transforms.functional import to_pil_image

from solo.data.pretrain_dataloader import build_transform_pipeline
from solo.data.views.batched import build_views

RECIPES = Path(__file__).parents[1] / "scripts" / "pretrain"
ROUNDS = 3


def views_per_second(make: Callable[[], int], seconds: float, clock: Callable[[], float]) -> float:
    """Views that `make` makes (it returns their number) in `seconds`, as a rate."""
    made, start = 0, clock()
    while clock() - start < seconds:
        made += make()
    return made / (clock() - start)


def gpu_clock() -> float:
    """Wall time when the GPU has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def per_sample(entries: list, images: torch.Tensor) -> Callable[[], int]:
    """The pipelines of the ordinary loader, on the first images of the batch."""
    pipelines = [build_transform_pipeline("cifar10", entry) for entry in entries]
    samples = [to_pil_image(image) for image in images[:32].cpu()]

    def make() -> int:
        for pipeline, entry in zip(pipelines, entries, strict=True):
            for _ in range(entry["num_crops"]):
                for sample in samples:
                    pipeline(sample)
        return len(samples) * sum(entry["num_crops"] for entry in entries)

    return make


def batched(entries: list, images: torch.Tensor, compiled: bool) -> Callable[[], int]:
    """The pipelines of `data.format=resident`."""
    views = build_views("cifar10", entries, compiled).to(images.device)
    generator = torch.Generator(images.device).manual_seed(0)
    return lambda: len(images) * len(views(images, generator))


def with_kornia(entries: list, images: torch.Tensor) -> Callable[[], int] | None:
    """kornia's nearest equivalents, None without kornia."""
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    pipelines = [_kornia_pipeline(K, entry).to(images.device) for entry in entries]

    @torch.no_grad()
    def make() -> int:
        for pipeline, entry in zip(pipelines, entries, strict=True):
            for _ in range(entry["num_crops"]):
                pipeline(images.float() / 255)
        return len(images) * sum(entry["num_crops"] for entry in entries)

    return make


def _kornia_pipeline(K, entry: dict) -> torch.nn.Module:
    size, rrc, jitter = entry["crop_size"], entry["rrc"], entry["color_jitter"]
    scale = rrc["crop_min_scale"], rrc["crop_max_scale"]
    steps = [
        K.RandomResizedCrop((size, size), scale=scale, resample="bicubic"),
        K.RandomHorizontalFlip(p=entry["horizontal_flip"]["prob"]),
    ]
    if jitter["prob"]:
        strengths = [jitter[name] for name in ("brightness", "contrast", "saturation", "hue")]
        steps.append(K.ColorJitter(*strengths, p=jitter["prob"]))
    for name, make in (
        ("grayscale", K.RandomGrayscale),
        ("gaussian_blur", lambda p: K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=p)),
        ("solarization", lambda p: K.RandomSolarize(0.0, 0.0, p=p)),
    ):
        if entry[name]["prob"]:
            steps.append(make(p=entry[name]["prob"]))
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    return torch.nn.Sequential(*steps, K.Normalize(mean, std))


def _processor() -> str:
    """Name, family and model of the processor, which the ratios depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in pairs}
    wanted = ("model name", "cpu family", "model")
    return ", ".join(f"{key} {known[key]}" for key in wanted if key in known) or platform.machine()


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="cifar/asymmetric", help="FOLDER/AUGMENTATIONS")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of three rounds")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--skip-compile", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder, name = args.recipe.split("/")
    entries = yaml.safe_load((RECIPES / folder / "augmentations" / f"{name}.yaml").read_text())
    largest = max(entry["crop_size"] for entry in entries)
    side = 32 if largest <= 32 else round(1.15 * largest)
    images = torch.randint(0, 256, (args.batch, 3, side, side), dtype=torch.uint8)
    images = images.to(args.device)
    makers = {
        "Pillow per sample": per_sample(entries, images),
        "kornia": with_kornia(entries, images),
        "batched, eager": batched(entries, images, compiled=False),
    }
    if not args.skip_compile:
        makers["batched, compiled"] = batched(entries, images, compiled=True)
    makers = {name: make for name, make in makers.items() if make is not None}
    clock = gpu_clock if args.device.type == "cuda" else time.process_time
    start = {name: time.perf_counter() for name in makers}
    for name, make in makers.items():
        start[name] = time.perf_counter()
        make()
        start[name] = time.perf_counter() - start[name]
    best = dict.fromkeys(makers, 0.0)
    for _ in range(ROUNDS):
        for name, make in makers.items():
            best[name] = max(best[name], views_per_second(make, args.seconds, clock))
    print(f"{args.recipe}, batch {args.batch} at {side}x{side}, one thread, {args.device}")
    versions = f"torch {torch.__version__}, Pillow {PIL.__version__}"
    print(f"{_processor()}, {versions}; views/s, best of {ROUNDS} rounds")
    for name, rate in best.items():
        ratio = rate / best["Pillow per sample"]
        print(f"{name:20}{rate:10,.0f}{ratio:8.1f}x   first call {start[name]:6.1f} s")


if __name__ == "__main__":
    main()
