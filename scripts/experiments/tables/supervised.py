# SPDX-License-Identifier: MIT
"""Supervised training from scratch, dense or sparse: the upper rows of SyncCP's Table 8.

    python -m scripts.experiments.tables.supervised --config-path DIR
        --config-name FILE [key=value ...]

Takes a recipe of fine-tuning and leaves the pretrained encoder out; `+sparse=rigl` works as behind
`main_pretrain.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> None:
    """Train and print the result."""
    parser = argparse.ArgumentParser(prog="python -m scripts.experiments.tables.supervised")
    parser.add_argument("--config-path", type=Path, required=True)
    parser.add_argument("--config-name", required=True)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    from solo.programs.app import run_program

    run_program(lambda: train(args.config_path, args.config_name, args.overrides))


def train(folder: Path, name: str, overrides: Sequence[str]) -> None:
    """Compose the recipe, build the encoder with random weights, and fit it with its classifier.

    Raises:
        SoloError: a mistake in the configuration or the data.
    """
    from hydra import compose, initialize_config_dir
    from lightning.pytorch import seed_everything
    from omegaconf import OmegaConf

    from solo.args.linear import parse_cfg
    from solo.backbones import build_encoder
    from solo.programs.linear import build_data, build_model
    from solo.programs.training import fit
    from sparse_ext.extension import register, sparsify

    register()
    with initialize_config_dir(str(folder.resolve()), version_base="1.2"):
        cfg = compose(name, overrides=list(overrides))
    OmegaConf.set_struct(cfg, False)
    sparse: Any = OmegaConf.to_container(cfg.pop("sparse")) if "sparse" in cfg else None
    cfg.finetune = True  # every weight trains
    parse_cfg(cfg)
    seed_everything(cfg.seed)
    model = build_model(cfg, build_encoder(cfg))
    if sparse:
        sparsify(model, sparse)
        cfg.sparse = sparse
    trainer = fit(cfg, model, build_data(cfg), Path(cfg.checkpoint.dir) / "supervised")
    metrics = trainer.callback_metrics
    print(f"Result (supervised, last epoch): acc@1={float(metrics['val_acc1'])}")


if __name__ == "__main__":
    main()
