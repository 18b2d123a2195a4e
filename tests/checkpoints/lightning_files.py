# SPDX-License-Identifier: MIT
"""Small encoders and the checkpoints that training leaves of them."""

import json

import torch
from omegaconf import OmegaConf

from solo.backbones import build_encoder

ARGS = {
    "name": "tiny",
    "method": "byol",
    "backbone": {"name": "resnet18", "kwargs": {"width": 4}},
    "data": {"dataset": "cifar10"},
}


def encoder(seed=0, **changes):
    torch.manual_seed(seed)
    return build_encoder(OmegaConf.create({**ARGS, **changes}))


def prefixed(module, prefix):
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


def lightning_file(path, state, args=ARGS, **more):
    content = {"epoch": 3, "global_step": 7, "state_dict": state, "optimizer_states": [], **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    if args:
        (path.parent / "args.json").write_text(json.dumps(args))
    return path


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
