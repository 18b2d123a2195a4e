# SPDX-License-Identifier: MIT
"""Turn the ResNet of a checkpoint into a weight file of Detectron2.

python scripts/utils/convert_model_to_detectron2.py \
    --pretrained_feature_extractor trained_models/byol/0/byol-imagenet-0-ep=99.ckpt \
    --output_detectron_model byol.pkl
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from solo.errors import CheckpointError
from solo.files.whole import whole_file
from solo.programs.app import exit_code

# in this order: torchvision's names on the left, Detectron2's on the right
_RENAMES = (
    (r"^(?!layer\d)", "stem."),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"\bbn(\d)\b", r"conv\1.norm"),
    (r"\bdownsample\.0\b", "shortcut"),
    (r"\bdownsample\.1\b", "shortcut.norm"),
)


def detectron_name(key: str) -> str:
    """Detectron2's name of a parameter of torchvision's ResNet."""
    for pattern, name in _RENAMES:
        key = re.sub(pattern, name, key)
    return key


def convert(source: str | Path, output: str | Path, encoder: str = "online") -> Path:
    """Write the encoder of the checkpoint `source` to `output`.

    Args:
        source: checkpoint of a run with a ResNet at ImageNet resolution; a sparse encoder keeps
            its zeros.
        output: file to write, `.pkl`.
        encoder: "online" or "momentum".

    Raises:
        CheckpointError: unreadable file, or an encoder that Detectron2's ResNet cannot take.
    """
    from solo.checkpoints.exporting import plain_state
    from solo.checkpoints.loading import read_checkpoint

    # as with torchvision's own files, the classifier of a bare state dict is of no use there
    state = plain_state(read_checkpoint(source), encoder)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    _check(state, source)
    model = {detectron_name(key): value.cpu().numpy() for key, value in state.items()}
    with whole_file(output) as partial, partial.open("wb") as file:
        content = {"model": model, "__author__": "solo-learn", "matching_heuristics": True}
        pickle.dump(content, file)
    return Path(output)


def _check(state: Mapping, source: str | Path) -> None:
    stem = state.get("conv1.weight")
    if stem is None or "layer1.0.conv1.weight" not in state:
        raise CheckpointError(f"{source}: not a ResNet, and only those convert to Detectron2.")
    if tuple(stem.shape[2:]) != (7, 7):
        raise CheckpointError(
            f"{source}: this ResNet has the {stem.shape[2]}x{stem.shape[3]} stem for small images; "
            "Detectron2 needs one that was trained at ImageNet resolution (7x7)."
        )


def main(arguments: list[str] | None = None) -> int:
    """Command line; 2 after a mistake in the input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pretrained_feature_extractor", required=True, help="checkpoint")
    parser.add_argument("--output_detectron_model", required=True, help="file to write (.pkl)")
    parser.add_argument("--encoder", default="online", choices=["online", "momentum"])
    args = parser.parse_args(arguments)
    return exit_code(
        lambda: convert(
            args.pretrained_feature_extractor, args.output_detectron_model, args.encoder
        )
    )


if __name__ == "__main__":
    sys.exit(main())
