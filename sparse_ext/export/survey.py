# SPDX-License-Identifier: MIT
"""Which networks can be slimmed: half of the channels masked at random, removed, and compared.

    python3 -m sparse_ext.export slim --survey [--json FILE] [--models NAME ...]

Every classification model of torchvision, and of timm one of each family named here, with random
weights, biases and statistics. Each runs in a process of its own; a file of an interrupted survey
is taken up again. Of networks with more than 100 million parameters the repeated blocks are left
out but for one of each kind: width and structure stay.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_ext.masks.channels.removal import shrink_
from sparse_ext.masks.channels.tracing import Channels

FAMILIES = {
    "convnext": "convnext_tiny",
    "convnextv2": "convnextv2_atto",
    "vit": "vit_small_patch16_224",
    "deit3": "deit3_small_patch16_224",
    "eva": "eva02_tiny_patch14_224",
    "swin": "swin_tiny_patch4_window7_224",
    "swinv2": "swinv2_tiny_window8_256",
    "poolformer": "poolformer_s12",
    "poolformerv2": "poolformerv2_s12",
    "metaformer": "caformer_s18",
    "convformer": "convformer_s18",
    "mobilenetv3": "mobilenetv3_small_100",
    "mobilenetv4": "mobilenetv4_conv_small",
    "mobilenetv4_hybrid": "mobilenetv4_hybrid_medium",
    "efficientnet": "efficientnet_b0",
    "regnetx": "regnetx_004",
    "regnety": "regnety_004",
    "densenet": "densenet121",
    "resnext": "resnext50_32x4d",
    "resnest": "resnest14d",
    "repvgg": "repvgg_a0",
    "ghostnet": "ghostnet_100",
    "ghostnetv2": "ghostnetv2_100",
    "mixer": "mixer_s32_224",
}
LARGE = 100_000_000  # parameters
EXACT = 1e-5  # of the largest output
CLASSES = 10
SHARES = (0.54, 0.66, 0.8)  # of the channels that are masked, until half of them are gone
MINUTES = 15  # that one network may take


def survey(models: Sequence[str] = (), path: str | Path | None = None) -> dict[str, Any]:
    """Slim every model in a process of its own, and print a line about each.

    Args:
        models: names or families; by default all.
        path: JSON file that is written after each model, and whose results are kept.

    Returns:
        `{"torchvision": {name: result}, "timm": {family: result}}`; a result has `ok`, `share` (of
        the channels that can go), `reason`, `removed` (share of the channels that went),
        `difference` (of the outputs, relative), `parameters` before and after.
    """
    import torchvision

    names = {"torchvision": torchvision.models.list_models(module=torchvision.models)}
    names["timm"] = list(FAMILIES)
    found: dict[str, Any] = {"torchvision": {}, "timm": {}}
    if path is not None and Path(path).exists():
        found |= json.loads(Path(path).read_text(encoding="utf-8"))
    print(f"{'model':28} can go   gone     parameters      difference  reason", flush=True)
    for library, some in names.items():
        for name in (n for n in some if not models or n in models):
            if name not in found[library]:
                found[library][name] = _apart(library, name)
                if path is not None:
                    Path(path).write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(line(name, found[library][name]), flush=True)
    for library, results in found.items():
        print(f"{library}: {sum(r['ok'] for r in results.values())} of {len(results)}")
    return found


def line(name: str, result: dict[str, Any]) -> str:
    """One model of the survey as a row of the printed table."""
    if "removed" not in result:
        return f"{name:28} {'-':>6}   {'-':>5} {result['reason']}"
    before, after = (n / 1e6 for n in result["parameters"])
    sizes = f"{before:7.2f}M ->{after:7.2f}M"
    return (
        f"{name:28} {result['share']:6.1%}   {result['removed']:5.1%} {sizes} "
        f"{result['difference']:10.1e}  {result['reason']}"
    )


def _apart(library: str, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "sparse_ext.export.survey", library, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        return {"ok": False, "share": 0.0, "reason": f"took more than {MINUTES} minutes"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"ok": False, "share": 0.0, "reason": last}
    return json.loads(done.stdout.splitlines()[-1])


def try_out(library: str, name: str) -> dict[str, Any]:
    """Examine a network with as many masks as it takes to lose half of its channels.

    Channels that stay to carry constants, and units of many channels each, are the reason why half
    of the units may be fewer than half of the channels.
    """
    result: dict[str, Any] = {}
    for share in SHARES:
        net = create(library, name)
        shake(net)
        result = examine(net, share=share)
        if result["ok"] or result["difference"] > EXACT:
            break
    return result


def examine(net: nn.Module, seed: int = 0, share: float = SHARES[0]) -> dict[str, Any]:
    """Mask channels of a network at random, slim it in place, and compare.

    Args:
        net: any network; it loses channels.
        seed: of the masks and the image.
        share: of all channels that are masked; more of those that can go, where some cannot.
    """
    from sparse_ext.config.sections import build
    from sparse_ext.masks.encoder import Encoder
    from sparse_ext.masks.masking import patch
    from sparse_ext.pruning.coupled_units import CoupledUnits

    net.eval()
    section = {"name": "gmp", "granularity": "filter", "coupled": True, "stem_dense": False}
    encoder = Encoder(patch(net, build(section)))
    units = CoupledUnits("filter", encoder, net)
    channels, before = units.channels, sum(p.numel() for p in net.parameters())
    can, rows = removable(channels, set(units.spaces)), _rows(net)
    output = rows - _hidden(channels, net)
    possible = can / max(1, rows - output)
    generator = torch.Generator().manual_seed(seed)
    going = min(0.9, share / max(possible, 0.1))
    masks = units.expand(_random(units.sizes, going, generator), encoder)
    encoder.change(masks, "zero")
    x = torch.randn(1, *channels.input_shape[1:], generator=generator)
    with torch.no_grad():
        full = net(x)
        report = shrink_([net])
        slim = net(x)
    difference = float((full - slim).abs().max() / full.abs().max())
    removed = (rows - _rows(net)) / max(1, rows - output)
    reason = ""
    if difference > EXACT:
        reason = f"outputs differ by {difference:.1e}"
    elif removed < 0.5:
        facts = [
            f"{s.name}: {s.fixed}" for s in channels.spaces if s.fixed and s.name in _named(net)
        ]
        reason = next(iter(facts), "fewer than half of the channels can go")
    return {
        "ok": not reason,
        "share": possible,
        "reason": reason,
        "removed": removed,
        "difference": difference,
        "parameters": [before, report.parameters[1]],
    }


def removable(channels: Channels, names: set[str]) -> int:
    """Outputs of layers that go with a unit of one of these spaces."""
    units = {int(u) for s in channels.spaces if s.name in names for u in s.units}
    used = torch.zeros(channels.units + 1, dtype=torch.bool)
    used[sorted(units)] = True
    found = 0
    for name in _layers(channels.net):
        rows = channels.conditions.get(f"{name}.weight", [None])[0]
        if rows is not None and rows.size:
            found += int(used[torch.from_numpy(rows)].any(1).sum())
    return found


def _layers(net: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in net.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def _named(net: nn.Module) -> set[str]:
    return set(_layers(net))


def _rows(net: nn.Module) -> int:
    return sum(m.weight.shape[0] for m in _layers(net).values())


def _hidden(channels: Channels, net: nn.Module) -> int:
    """Outputs of all layers but those that the network puts out."""
    out = "is what the network puts out"
    return sum(m.weight.shape[0] for n, m in _layers(net).items() if channels.why.get(n) != out)


def _random(
    sizes: dict[str, int], share: float, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    kept = {}
    for name, size in sizes.items():
        kept[name] = torch.ones(size, dtype=torch.bool)
        n = min(size - 1, round(share * size))
        kept[name][torch.randperm(size, generator=generator)[:n]] = False
    return kept


@torch.no_grad()
def shake(net: nn.Module, seed: int = 0) -> None:
    """Biases, scales and statistics as after training, so that constants are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        leaf = name.rpartition(".")[2]
        statistics = leaf.startswith("running_")
        if not (isinstance(tensor, nn.Parameter) or statistics):
            continue
        if leaf == "running_var" or (leaf == "weight" and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif leaf in ("bias", "running_mean") or tensor.ndim == 1:
            tensor.uniform_(-0.3, 0.3, generator=generator)
        elif not tensor.any():
            tensor.normal_(std=0.02, generator=generator)  # a classifier that starts at zero


def create(library: str, name: str) -> nn.Module:
    """A network with random weights; a large one without most of its repeated blocks."""
    with contextlib.suppress(NotImplementedError), torch.device("meta"):
        net = _create(library, name)
        if sum(p.numel() for p in net.parameters()) > LARGE:
            _thin_out(net)
            net = net.to_empty(device="cpu")
            _initialise(net)
            return net
    return _create(library, name)


def _create(library: str, name: str) -> nn.Module:
    if library == "timm":
        import timm

        return timm.create_model(FAMILIES.get(name, name), num_classes=CLASSES)
    import torchvision

    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, num_classes=CLASSES, **quick)


def _thin_out(net: nn.Module) -> None:
    for module in list(net.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        last, run = None, 0
        for name, child in list(module.named_children()):
            kind = (type(child), [tuple(p.shape) for p in child.parameters()])
            run = run + 1 if kind == last and kind[1] else 1
            last = kind
            if run > 1:
                delattr(module, name)


@torch.no_grad()
def _initialise(net: nn.Module) -> None:
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.is_floating_point():
            fan = tensor[0].numel() if tensor.ndim > 1 else 1
            tensor.normal_(std=fan**-0.5 if tensor.ndim > 1 else 0.02)
        else:
            tensor.zero_()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=("torchvision", "timm"))
    parser.add_argument("name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(try_out(args.library, args.name)))
