# SPDX-License-Identifier: MIT
"""What single pruned weights save: ResNets with the element-wise kernel beside dense ones, CPU.

    python benchmarks/element_conv.py [--sparsity 0.8 0.9 0.95] [--batch 64] [--threads 1]
        [--rounds 5] [--backbone resnet18] [--size 32] [--allocation uniform] [--dense-gradient]
        [--activities step inference] [--peers deepsparse sparseprop openvino ...]

Every network starts from the same random weights, of which the same share of each prunable layer
(or by --allocation) is pruned by magnitude; the stem is dense. A training step is forward,
backward and SGD with momentum; gradients of pruned weights are not computed without
--dense-gradient. Inference is in eval mode without gradients, by the kernel's frozen copy
(`faster`). bfloat16 is autocast, whose weights,
sums and optimizer are float32. The kernel decides by itself which layers it takes
(`kernel="auto"`).

All works take turns in one process, each in its best of several rounds, by seconds of the CPU with
one thread and of the clock with several. Peers run in processes of their own, between those
rounds, from environments that this command makes beside the cache of the kernel. Ratios are to
the dense network in float32 and channels_last of the same run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable

import torch
from engines import ENGINES, Peer
from measuring import fastest, keep_memory
from routes import network
from torch import nn

from sparse_ext.config.sections import build
from sparse_ext.kernels import needs_dense_gradients
from sparse_ext.kernels.element.frozen import faster
from sparse_ext.kernels.element.swap import element_layers, use_element_kernel
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.units import Units

Works = dict[tuple[str, str], Callable[[], object]]  # by activity and who does it


def backbone(args: argparse.Namespace) -> nn.Module:
    """A fresh encoder, with the stem for small images up to 64 pixels."""
    if args.size <= 64:
        return network(args.backbone, args.width)
    from solo.backbones import get_builder

    torch.manual_seed(0)
    net = get_builder(args.backbone)(None)
    net.fc = nn.Identity()
    return net


def pruned(net: nn.Module, sparsity: float, allocation: str) -> nn.Module:
    """A copy without the smallest weights."""
    net = patch(copy.deepcopy(net), build({"name": "gmp"}))
    encoder = Encoder(net)
    units = Units("element", encoder.masks.shapes)
    values = units.pool({name: weight.abs() for name, weight in encoder.weights.items()})
    if allocation == "global":
        kept = units.largest(values, sparsity)
    else:
        kept = units.largest_per_layer(values, sparsity, allocation)
    encoder.change(units.expand(kept, encoder), "zero")
    return net


def with_kernel(net: nn.Module, dense_gradient: bool) -> nn.Module:
    """A copy that computes its kept weights."""
    net = copy.deepcopy(net)
    use_element_kernel(net)
    needs_dense_gradients(net, dense_gradient)
    for layer in element_layers(net):
        layer.dense_share = float(dense_gradient)
    return net


def work(net: nn.Module, images: torch.Tensor, step: bool, half: bool) -> Callable[[], object]:
    """One training step or one inference."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return net(images)

    def train() -> None:
        net.train()
        optimizer.zero_grad()
        forward().float().square().mean().backward()
        optimizer.step()

    def infer() -> None:
        net.eval()
        with torch.no_grad():
            forward()

    return train if step else infer


def works_of(args: argparse.Namespace, images: torch.Tensor) -> tuple[Works, dict]:
    """Everything to time, and what the kernel's results are off by."""
    dense = backbone(args).to(memory_format=torch.channels_last)
    nets: dict[str, nn.Module] = {"dense": dense}
    frozen, off = dict(nets), {}
    for sparsity in args.sparsity:
        plain = pruned(dense, sparsity, args.allocation)
        name = f"{100 * sparsity:g}"
        nets[name] = with_kernel(plain, args.dense_gradient)
        frozen[name] = faster(plain)
        off[name] = difference(plain, nets[name], images[: min(16, len(images))])
    works = {}
    for activity in args.activities:
        for name, net in (nets if activity == "step" else frozen).items():
            for half in (False, True):
                made = work(net, images, activity == "step", half)
                works[f"{activity}_{'bf16' if half else 'fp32'}", name] = made
    return works, off


def difference(plain: nn.Module, kernel: nn.Module, images: torch.Tensor) -> float:
    """The largest difference of features over the largest feature."""
    with torch.no_grad():
        wanted, found = (copy.deepcopy(net).eval()(images) for net in (plain, kernel))
    return float((wanted - found).abs().max() / wanted.abs().max())


def ratios(times: dict[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    """Times faster than dense float32, by activity and sparsity; dense bfloat16 as sparsity 0."""
    found: dict[str, dict[str, float]] = {}
    for (activity, name), seconds in times.items():
        base = times[f"{activity.partition('_')[0]}_fp32", "dense"]
        key = "0" if name == "dense" else name
        found.setdefault(activity, {})[key] = round(base / seconds, 2)
    return found


def peers_of(args: argparse.Namespace) -> list[Peer]:
    """Those that could be installed, with their networks loaded."""
    nets, shape = {}, (args.batch, 3, args.size, args.size)
    for sparsity in args.sparsity if args.peers else []:
        plain = backbone(args)
        state = pruned(plain, sparsity, args.allocation).state_dict()
        plain.load_state_dict({k: v for k, v in state.items() if not k.endswith("mask")})
        nets[f"{100 * sparsity:g}"] = plain
    names = [n for n in args.peers if ENGINES[n].activity.partition("_")[0] in args.activities]
    found = [Peer(name, nets, shape, args.threads) for name in names]
    return [peer for peer in found if peer.ready]


def measure(args: argparse.Namespace) -> dict[str, dict]:
    """Time everything, print a line for each, and return the ratios."""
    images = torch.randn(args.batch, 3, args.size, args.size)
    works, off = works_of(args, images)
    peers = peers_of(args)
    seconds = fastest(list(works.values()), args.rounds, [p.round for p in peers])
    times = dict(zip(works, seconds, strict=True))
    found = ratios(times)
    print(f"features off by at most {max(off.values()):.0e} of the largest")
    for (activity, name), best in times.items():
        key = "0" if name == "dense" else name
        print(f"{activity:16} {name:>6} {1e3 * best:9.2f} ms {found[activity][key]:6.2f}x")
    compared = {peer.name: peer.ratios(times) for peer in peers}
    for name, by_activity in compared.items():
        print(f"{name}: {by_activity}")
    return {**found, "peers": compared}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=64, help="of a ResNet for small images")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocation", default="uniform", choices=["uniform", "erk", "global"])
    parser.add_argument("--dense-gradient", action="store_true")
    parser.add_argument("--activities", nargs="+", default=["step", "inference"])
    parser.add_argument("--peers", nargs="*", default=[], choices=list(ENGINES))
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, ", end="")
    print(f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {vars(args)}")
    print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
