# SPDX-License-Identifier: MIT
"""Latency of gated encoders that compute open channels only, beside the dense network's.

    python benchmarks/gated_inference.py [RUN ...] [--budgets 0.1 0.2 0.3 0.4 0.5] [--batch 1 16]
        [--width 64] [--size 32] [--threads 1] [--device cpu] [--repeats 15]

Without RUN (folders or checkpoints of gated runs) the encoders have random weights, and one shift
of all gates puts the MACs that these images take at each budget; a trained encoder spreads them
otherwise over its layers. The dense network has its batch norms folded in, as the gated ones have,
and takes the faster of both memory formats. All are timed in turns in one process; a figure is the
median of the repeats, in milliseconds per image; gates closed is the mean over the blocks.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from solo.backbones import resnet18, resnet50
from solo.backbones.build import adapt_resnet
from solo.checkpoints import load_run
from solo.data.shown import input_size
from sparse_ext.gating.config.sections import build
from sparse_ext.gating.encoder import choose, gating_of, patch
from sparse_ext.gating.export import export_gated

IMAGES = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, IMAGES])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.runs:
        cases = [(f"run {i}", *trained(run)) for i, run in enumerate(args.runs)]
    else:
        images = pictures(args.size)
        nets = ((b, random_encoder(args.width, b, images)) for b in args.budgets)
        cases = [(f"budget {100 * b:g}%", net, images) for b, net in nets]
    for index, run in enumerate(args.runs):
        print(f"run {index}: {run}")
    print(f"machine: {machine(args.device)}, torch {torch.__version__}, float32")
    print(f"{'':14}{'batch':>6}{'MACs used':>11}{'gates closed':>14}", end="")
    print(f"{'dense ms':>10}{'gated ms':>10}{'times faster':>14}{'deviation':>11}")
    for batch in args.batch:
        for line in measure(cases, batch, args.device, args.repeats):
            print(line, flush=True)


def measure(cases: list, batch: int, device: str, repeats: int) -> list[str]:
    """One line per case; every repeat times all networks once, one after the other."""
    calls, facts = {}, {}
    for name, net, images in cases:
        with torch.no_grad():
            gated, wanted = export_gated(net).to(device), net(images)
        figures = gating_of(net).context.collect()
        rates = [value for key, value in figures.items() if key.startswith("rate")]
        facts[name] = (figures["rho"], 1 - statistics.fmean(rates))
        x = images.to(device)
        facts[name] += (float((gated(x).cpu() - wanted).abs().max()),)
        calls[name, "gated"] = (gated, x)
        dense = folded(net).to(device)
        calls[name, "dense"] = (dense, x)
        last = copy.deepcopy(dense).to(memory_format=torch.channels_last)
        calls[name, "last"] = (last, x.to(memory_format=torch.channels_last))
    times: dict = {key: [] for key in calls}
    for _ in range(repeats + 1):
        for key, (net, x) in calls.items():
            times[key].append(milliseconds(net, x, batch, device))
    median = {key: statistics.median(found[1:]) for key, found in times.items()}
    lines = []
    for name, _, _ in cases:
        dense, gated = min(median[name, "dense"], median[name, "last"]), median[name, "gated"]
        rho, closed, worst = facts[name]
        lines.append(
            f"{name:14}{batch:6d}{rho:11.1%}{closed:14.1%}{dense:10.3f}{gated:10.3f}"
            f"{dense / gated:14.2f}{worst:11.1e}"
        )
    return lines


@torch.inference_mode()
def milliseconds(net: nn.Module, images: torch.Tensor, batch: int, device: str) -> float:
    """Wall-clock time per image of one way through all images."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for part in images.split(batch):
        net(part)
    if device != "cpu":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / len(images)


def pictures(size: int) -> torch.Tensor:
    """Smooth random images (N, 3, size, size), each with contrast and colours of its own."""
    coarse = torch.randn(IMAGES, 3, 6, 6) * torch.rand(IMAGES, 3, 1, 1) * 2
    images = nn.functional.interpolate(coarse, size, mode="bicubic")
    return images + 0.3 * torch.rand(IMAGES, 1, 1, 1) * torch.randn(IMAGES, 3, size, size)


@torch.no_grad()
def random_encoder(width: int, budget: float, images: torch.Tensor) -> nn.Module:
    """A gated ResNet-18 that spends `budget` of the MACs on these images."""
    torch.manual_seed(0)
    net = resnet18(None, width=width)
    adapt_resnet(net, small_images=images.shape[-1] <= 64)
    config = build({"name": "vicreg_dual", "budget": budget, "gate_bias_init": 0.0})
    net = patch(net, config).train()
    for branch in ("gated", "dense"):  # statistics of all batch norms
        choose(net, branch)
        for _ in range(20):
            net(images)
    choose(net.eval(), "gated")
    low, high = -20.0, 20.0
    for _ in range(13):  # to 0.005: closer would put some gate onto its threshold
        shift = (low + high) / 2
        for block in gating_of(net).layers.values():
            block.gate.expand.bias.fill_(shift)
        gating_of(net).context.collect()
        net(images)
        low, high = (shift, high) if used(net) < budget else (low, shift)
    return net


def used(net: nn.Module) -> float:
    """Share of the dense network's MACs since the last call."""
    return gating_of(net).context.collect()["rho"]


def trained(run: Path) -> tuple[nn.Module, torch.Tensor]:
    """The gated encoder of a run, and images of its size (random: its own gates decide)."""
    net, args = load_run(run)
    return choose(net.eval(), "gated"), pictures(input_size(args))


@torch.no_grad()
def folded(net: nn.Module) -> nn.Module:
    """The dense branch as a plain ResNet with its batch norms folded in."""
    source = getattr(net, "dense", net)
    deep = "layer1.0.conv3.weight" in source.state_dict()
    plain = (resnet50 if deep else resnet18)(None, width=source.conv1.out_channels)
    adapt_resnet(plain, small_images=isinstance(source.maxpool, nn.Identity))
    state = source.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    plain.eval()
    for module in plain.modules():
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")):
            if isinstance(getattr(module, norm, None), nn.BatchNorm2d):
                both = getattr(module, conv), getattr(module, norm)
                setattr(module, conv, fuse_conv_bn_eval(*both))
                setattr(module, norm, nn.Identity())
        if isinstance(getattr(module, "downsample", None), nn.Sequential):
            module.downsample = fuse_conv_bn_eval(*module.downsample)
    return plain


def machine(device: str) -> str:
    """The processor that does the work."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
