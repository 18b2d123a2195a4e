# SPDX-License-Identifier: MIT
"""Channels removed from well-known networks: seconds, memory and files, at 224 pixels, CPU.

    python benchmarks/slim_models.py [MODEL ...] [--budget macs:0.5] [--multiple 16]
        [--batch 8] [--train_batch 4] [--rounds 3] [--threads 1] [--peer] [--json FILE]

Each network of timm, with random weights and a classifier of 1000, loses the same share of the
channels of every layer, by magnitude, until no more than `--budget` of its multiply-accumulates (or
parameters) is left with widths that are multiples of `--multiple`. Rows:

- dense: what timm builds.
- slim: what `sparse_ext` leaves; `off by` compares it with the masked network.
- Torch-Pruning (`--peer`): also by magnitude and one ratio for all layers, by bisection down to the
  budget, and with the same multiples. Its ratios come in steps, so that it may end below: the row
  `slim` then gets what it has left as its own budget, so that both are compared at equal cost.

Times are the best of several rounds in which all take turns: inference at `--batch` in the faster
memory format of two, in ONNX Runtime, and a training step (forward, backward, SGD with momentum) at
`--train_batch` in the same format. Peak memory is that of a process of its own per row and
activity. `slimming` is the time from the network with masks to the slim one, tracing included; of
Torch-Pruning from the network to the smaller one, its dependency graph included.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from measuring import fastest, keep_memory, peak_memory
from real_speed import infer, trainer, warm_up
from torch import nn

from sparse_ext.allocation import keep_topk
from sparse_ext.config.budget_names import read_budget
from sparse_ext.config.sections import build
from sparse_ext.cost.per_layer import count
from sparse_ext.export import OnnxEncoder, export_onnx
from sparse_ext.export.slim import difference
from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.channels.widths import resize_
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.masking import patch
from sparse_ext.pruning.priced_units import make_units

SIZE = 224
MODELS = {
    "ResNet-50": "resnet50",
    "ConvNeXt-T": "convnext_tiny",
    "ViT-S/16": "vit_small_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "MobileNetV3-L": "mobilenetv3_large_100",
    "EfficientNet-B0": "efficientnet_b0",
}


@dataclass
class Row:
    """One way of one network.

    Attributes:
        name: as printed.
        net: the network; None in results read from a file.
        off: difference of its features from those it should have.
        slimming: seconds until it was there.
        figures: what is measured, by name.
    """

    name: str
    net: nn.Module | None
    off: float = 0.0
    slimming: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


def network(name: str) -> nn.Module:
    """A fresh network whose biases and statistics are not zero."""
    from sparse_ext.export.survey import shake

    torch.manual_seed(0)
    net = timm.create_model(name)
    shake(net)
    return net.eval()


def slimmed(model: str, full: nn.Module, budget: str, multiple: int) -> Row:
    """Masks by magnitude down to the budget, then without the channels that they have emptied."""
    section = {"name": "gmp", "granularity": "filter", "coupled": True, "stem_dense": False}
    config = build({**section, "budget": budget})
    net = patch(copy.deepcopy(full), config)
    encoder = Encoder(net)
    units = make_units(config, encoder)
    units.count_costs((3, SIZE, SIZE))
    values = units.pool({name: weight.abs() for name, weight in encoder.weights.items()})

    def choose(share: float) -> dict[str, torch.Tensor]:
        kept = units.largest_per_layer(values, share, "uniform")
        for name, flags in kept.items():
            if not name.endswith((":head", ":dim", ":group", ":axis")):
                n = max(1, round(int(flags.sum()) / multiple)) * multiple
                kept[name] = keep_topk(values[name], min(len(flags), n))
        return kept

    kept = units.within(choose, config.final)
    encoder.change(units.expand(kept, encoder), "zero")
    masked, start = copy.deepcopy(net), time.process_time()
    report = shrink_([net], multiple=multiple)
    took = time.process_time() - start
    print(f"  {report.removed} channels gone, {report.carriers} stay to carry constants")
    off = difference(masked, net, SIZE, images=2)
    return Row("slim", plain(network(model), net), off, took)


def plain(full: nn.Module, slim: nn.Module) -> nn.Module:
    """The slim network without masks, as it is opened from a file."""
    state = {k: v for k, v in slim.state_dict().items() if not k.endswith(".mask")}
    resize_(full, state)
    full.load_state_dict(state)
    return full


def measure(rows: list[Row], args: argparse.Namespace, folder: Path) -> None:
    """Times in turns; memory and files of each by itself."""
    images, few = (torch.randn(n, 3, SIZE, SIZE) for n in (args.batch, args.train_batch))
    layouts = (torch.contiguous_format, torch.channels_last)
    pairs = [[copy.deepcopy(r.net).to(memory_format=layout) for layout in layouts] for r in rows]
    times = fastest([infer(net, images) for pair in pairs for net in pair], args.rounds)
    taken = [times[2 * i : 2 * i + 2] for i in range(len(rows))]
    nets = [pair[own.index(min(own))] for pair, own in zip(pairs, taken, strict=True)]
    del pairs
    for i, (row, own) in enumerate(zip(rows, taken, strict=True)):
        file, whole = export_onnx(row.net, folder / f"{i}.onnx", SIZE), folder / f"{i}.pt"
        torch.save(nets[i], whole)
        cost = count(row.net, SIZE)
        row.figures = {"parameters": cost.parameters, "macs": cost.macs_dense}
        row.figures |= {"inference": min(own), "file": file.stat().st_size}
        for kind, trains, batch in (
            ("inference_memory", False, args.batch),
            ("step_memory", True, args.train_batch),
        ):
            row.figures[kind] = peak_memory(warm_up, prepare, whole, trains, batch, args.threads)
    files = [OnnxEncoder(folder / f"{i}.onnx", args.threads) for i in range(len(rows))]
    for key, works in (
        ("onnx", [infer(file, images) for file in files]),
        ("step", [trainer(net, few) for net in nets]),
    ):
        for row, seconds in zip(rows, fastest(works, args.rounds), strict=True):
            row.figures[key] = seconds


def prepare(file: Path, trains: bool, batch: int, threads: int) -> Callable[[], object]:
    """The work of a row in a process of its own."""
    torch.set_num_threads(threads)
    net = torch.load(file, weights_only=False)
    return (trainer if trains else infer)(net, torch.randn(batch, 3, SIZE, SIZE))


HEAD = (
    "| network | M parameters | G MACs | inference | ONNX Runtime | training step | "
    "MB inference / step | file MB | slimming | off by |"
)


def lines(name: str, rows: list[Row]) -> list[str]:
    """Rows of Markdown: times in ms, with how many times faster than dense."""
    first, found = rows[0].figures, []
    for row in rows:
        f = row.figures
        if not f:
            found.append(f"| {name}, {row.name} |" + " – |" * 9)
            continue
        timed = [
            f"{1e3 * f[key]:.0f} ms"
            + (f", {first[key] / f[key]:.2f}x" if row is not rows[0] else "")
            for key in ("inference", "onnx", "step")
        ]
        found.append(
            f"| {name}, {row.name} | {f['parameters'] / 1e6:.2f} | {f['macs'] / 1e9:.2f} | "
            f"{' | '.join(timed)} | {f['inference_memory']:.0f} / {f['step_memory']:.0f} | "
            f"{f['file'] / 1e6:.1f} | {f'{row.slimming:.1f} s' if row.slimming else ''} | "
            f"{f'{row.off:.0e}' if row.name == 'slim' else ''} |"
        )
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--budget", default="macs:0.5")
    parser.add_argument("--multiple", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train_batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="beside Torch-Pruning, if installed")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kind, share = read_budget(args.budget)
    if args.peer and kind != "macs":
        parser.error("--peer compares at equal multiply-accumulates: --budget macs:SHARE")
    torch.set_num_threads(args.threads)
    keep_memory()
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, ", end="")
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {args.budget}, float32, batch ",
        end="",
    )
    print(f"{args.batch} (training {args.train_batch}), widths multiples of {args.multiple}")
    table, results = [HEAD, "|---|" + "---:|" * 9], {}
    for name in args.models:
        print(name, flush=True)
        net = network(MODELS.get(name, name))
        budget, peers = args.budget, []
        if args.peer:
            from slim_peer import smaller

            full = count(net, SIZE).macs_dense
            peers = [Row("Torch-Pruning", *smaller(net, full * share, args.multiple, SIZE))]
            if peers[0].net is not None:
                budget = f"macs:{count(peers[0].net, SIZE).macs_dense / full:.4f}"
        slim = slimmed(MODELS.get(name, name), net, budget, args.multiple)
        rows = [Row("dense", net), slim, *peers]
        with tempfile.TemporaryDirectory() as folder:
            measure([row for row in rows if row.net is not None], args, Path(folder))
        table += lines(name, rows)
        print("\n".join(table[-len(rows) :]), flush=True)
        results[name] = [
            {"name": r.name, "off": r.off, "slimming": r.slimming, **r.figures} for r in rows
        ]
        if args.json:
            args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print("\n".join(table))


if __name__ == "__main__":
    main()
