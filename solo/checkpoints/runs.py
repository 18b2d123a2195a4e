# SPDX-License-Identifier: MIT
"""A trained encoder out of a run: the one way to open a run's folder or one of its checkpoints."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from solo import extensions
from solo.checkpoints.files import PREFIXES, existing_file, read_args, read_checkpoint
from solo.checkpoints.loading import LoadReport, load_encoder
from solo.data.preprocess import Preprocess
from solo.errors import CheckpointError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_log = logging.getLogger(__name__)


def weights_file(path: str | Path) -> Path:
    """The weight file that `path` means: itself, or the newest checkpoint of a run's folder.

    Raises:
        CheckpointError: there is no such file, or the folder has none.
    """
    from solo.monitoring.loggers import last_weights

    path = Path(path)
    if path.is_dir():
        path = last_weights(path) or path
    return existing_file(path)


@dataclass(frozen=True)
class Run:
    """A run's configuration and one of its weight files.

    Attributes:
        path: the weight file.
        args: the configuration, as `args.json` beside the file has it.
        checkpoint: what `read_checkpoint` returned for the file.
    """

    path: Path
    args: dict[str, Any]
    checkpoint: dict[str, Any]

    @property
    def plain(self) -> DictConfig:
        """The configuration without the sections of extensions.

        A checkpoint says by itself which masks and gates its encoder has, and with living weights
        they are others than training's, so a plain encoder is what it is loaded into.
        """
        from omegaconf import OmegaConf

        sections = extensions.sections()
        return OmegaConf.create({k: v for k, v in self.args.items() if k not in sections})

    @property
    def encoders(self) -> tuple[str, ...]:
        """`online`, and `momentum` where the method has such an encoder."""
        found = any(key.startswith(PREFIXES["momentum"]) for key in self.checkpoint["state_dict"])
        return ("online", "momentum") if found else ("online",)

    def load_into(self, backbone: nn.Module, encoder: str = "online") -> LoadReport:
        """Load one of the run's encoders into a plain one; see `load_encoder`.

        Raises:
            CheckpointError: it does not fit; the message names the file.
        """
        return load_encoder(
            backbone,
            self.checkpoint,
            encoder,  # type: ignore[arg-type]
            source=self.path,
            args=self.args,
        )

    def encoder(self, encoder: str = "online") -> LoadReport:
        """Build one of the run's encoders and load its weights.

        Raises:
            CheckpointError: the weights do not fit what `args.json` describes.
        """
        from omegaconf.errors import OmegaConfBaseException

        from solo.backbones import build_encoder

        try:
            backbone = build_encoder(self.plain)
        except OmegaConfBaseException as error:
            raise CheckpointError(
                f"{self.path.with_name('args.json')} does not describe an encoder: the key "
                f"'{error.full_key}' is missing or wrong. Keep the file that the run wrote."
            ) from error
        return self.load_into(backbone, encoder)


def open_run(path: str | Path) -> Run:
    """Read the configuration and the weights of a run.

    Args:
        path: the folder of a run, which stands for its newest checkpoint, or a checkpoint beside
            which `args.json` lies.

    Raises:
        CheckpointError: no such file, a damaged one, or no `args.json`.
    """
    file = weights_file(path)
    args = read_args(file)
    if args is None:
        raise CheckpointError(
            f"{file}: there is no args.json beside it, so nothing says which encoder it is. Keep "
            "the file that the run wrote beside its checkpoints, or build the encoder with "
            "solo.backbones and use solo.checkpoints.loading.load_encoder."
        )
    return Run(file, args, read_checkpoint(file))


def load_run(path: str | Path, encoder: str = "online") -> tuple[nn.Module, dict[str, Any]]:
    """The trained encoder of a run, whatever method, masks and gates it was trained with.

    >>> backbone, args = load_run("trained_models/byol/0")  # doctest: +SKIP

    Args:
        path: the folder of a run, or a checkpoint beside which `args.json` lies.
        encoder: `online` or `momentum`.

    Returns:
        (encoder with its weights, masks and gates, in training mode as it was built; the run's
        configuration).

    Raises:
        CheckpointError: no such file, no `args.json`, no such encoder, or the two do not fit.
    """
    run = open_run(path)
    return run.encoder(encoder).backbone, run.args


def load_pretrained(name_or_path: str | Path, encoder: str = "online") -> nn.Module:
    """A trained encoder, ready for evaluation, from the zoo or from a run's folder or checkpoint.

    >>> encoder = load_pretrained("trained_models/byol/0")  # doctest: +SKIP
    >>> features = encoder(encoder.preprocess("photo.jpg")[None])  # doctest: +SKIP

    Args:
        name_or_path: a name in `zoo/manifest.json`, the folder of a run, a checkpoint beside which
            its `args.json` lies, or a file that an export has written.
        encoder: which encoder of a momentum method; an exported file has one.

    Returns:
        the encoder in eval mode; `solo.backbones.features_dim` says the size of its output, and
        `preprocess` (`solo.data.preprocess.Preprocess`) makes what it takes of pictures.

    Raises:
        CheckpointError: nothing of that name, or see `load_run`.
    """
    from solo.checkpoints.zoo import resolve

    path = resolve(name_or_path)
    extensions.registered()
    if (opened := extensions.ENCODER_FILES.get(path.suffix)) is not None:
        return opened(existing_file(path)).eval()
    run = open_run(path)
    report = run.encoder(encoder)
    _log.info("%s", report)
    report.backbone.preprocess = Preprocess(run.args)  # type: ignore[assignment]
    return report.backbone.eval()
