# SPDX-License-Identifier: MIT
"""`python3 -m solo.programs.replay FOLDER`: run a step again whose loss was not finite."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from solo.programs.app import exit_code


@dataclass
class Replay:
    """What a step did when it was run again.

    Attributes:
        kept: its loss in the run.
        loss: its loss now.
        findings: what was not finite, in the order of the step.
    """

    kept: float
    loss: float
    findings: list[str] = field(default_factory=list)


class _Done(Exception):
    """The step has been run; nothing after it should be."""


def replay(folder: str | Path) -> Replay:
    """Run the kept step of a folder once more, on the CPU, up to its loss.

    Raises:
        CheckpointError: the folder is not one that a run has kept, or does not fit the code.
    """
    import lightning.pytorch as pl
    import torch

    from solo.checkpoints.files import read_args
    from solo.errors import CheckpointError
    from solo.monitoring.replay import STEP_FILE
    from solo.programs.pretrain import build_model
    from solo.registry import import_plugins

    file = Path(folder) / STEP_FILE
    if not file.is_file():
        raise CheckpointError(f"'{folder}' holds no {STEP_FILE}: give a folder not-finite-step=...")
    from omegaconf import OmegaConf

    kept = torch.load(file, map_location="cpu", weights_only=True)
    cfg = OmegaConf.create(read_args(file))
    import_plugins(cfg.get("imports"))
    cfg.performance = {**(cfg.get("performance") or {}), "compile": False}
    model = build_model(cfg)
    done = Replay(kept["loss"], float("nan"))
    _arrange(model, kept, done)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=cfg.max_epochs,
        precision=_on_cpu(cfg.get("precision", "32-true")),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        accumulate_grad_batches=kept.get("accumulated", 1),
    )
    # as many as the run's epoch had: schedules look at the share of all steps that is over
    batches = torch.utils.data.DataLoader([kept["batch"]] * kept.get("batches", 1), batch_size=None)
    try:
        trainer.fit(model, batches)
    except _Done:
        return done
    raise CheckpointError(f"{file}: the step did not reach its loss")


def _on_cpu(precision: Any) -> Any:
    """float16 needs a GPU; what it does is nearest to bfloat16 here."""
    return "bf16-mixed" if str(precision) in ("16", "16-mixed") else precision


def _arrange(model: Any, kept: dict[str, Any], done: Replay) -> None:
    """Let `model.training_step` be the kept step: by then all callbacks have done their part."""
    from solo.compat import set_progress
    from solo.monitoring.replay import set_random_state

    plain = model.training_step

    def step(batch: Any, batch_idx: int) -> None:
        trainer = model.trainer
        set_progress(trainer, kept["step"], kept["epoch"])
        model.on_train_epoch_start()
        for callback in trainer.callbacks:  # schedules of extensions, at the step's place
            callback.on_train_epoch_start(trainer, model)
            callback.on_train_batch_start(trainer, model, batch, kept["batch_idx"])
        missing, unknown = model.load_state_dict(kept["state"], strict=False)
        for names, what in ((missing, "is not in the kept state"), (unknown, "is not known")):
            done.findings += [f"{name} {what}" for name in names]
        done.findings += list(_of_inputs(batch, model))
        hooks = _watch(model, done.findings)
        set_random_state(kept["random"])
        out = plain(batch, kept["batch_idx"])
        for hook in hooks:
            hook.remove()
        done.loss = float(out["loss"] if isinstance(out, dict) else out)
        raise _Done

    model.training_step = step


def _of_inputs(batch: Any, model: Any) -> Any:
    """What was not finite before the step: images of a view, weights."""
    views = batch[1] if isinstance(batch[1], (list, tuple)) else [batch[1]]
    for index, view in enumerate(views):
        bad = (~view.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            yield f"view {index}: the images at {bad} of the batch are not finite"
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            yield f"{name} is not finite before the step"


def _watch(model: Any, findings: list[str]) -> list[Any]:
    """Note the first modules whose output is not finite though their input is."""
    import torch

    def note(name: str) -> Any:
        def hook(_module: Any, inputs: tuple, output: Any) -> None:
            ins = [x for x in inputs if isinstance(x, torch.Tensor) and x.is_floating_point()]
            bad = isinstance(output, torch.Tensor) and not bool(output.isfinite().all())
            if bad and all(bool(x.isfinite().all()) for x in ins):
                findings.append(f"{name} makes finite inputs not finite")

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    return [module.register_forward_hook(note(name)) for name, module in leaves]


def main(argv: Sequence[str] | None = None) -> int:
    """Print what happened; 0, or 2 after a message for a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python3 -m solo.programs.replay", description=__doc__)
    parser.add_argument("folder", help="not-finite-step=... in the folder of a run")
    args = parser.parse_args(argv)
    return exit_code(lambda: _print(replay(args.folder)))


def _print(done: Replay) -> None:
    print(f"loss {done.loss} (in the run: {done.kept})")
    print("\n".join(done.findings) or "no module makes finite inputs not finite: look at the loss")


if __name__ == "__main__":
    sys.exit(main())
