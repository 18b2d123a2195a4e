# SPDX-License-Identifier: MIT
"""The keys of a run: names, types and defaults. The only place where defaults of `solo` live.

One frozen dataclass per section. A field without default is required by the programs; `Any`
marks a value that somebody else checks (the method, the backbone builder, Lightning).
Nothing here imports torch, so that a typo is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from solo.data.catalogue import IMAGENET_MEAN, IMAGENET_STD

# What the optimizer receives when the YAML leaves it out.
OPTIMIZER_DEFAULTS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
    "adam": {},
    "adamw": {"betas": [0.9, 0.999]},
}
_TORCH = ("foreach", "maximize", "capturable", "differentiable", "fused")
OPTIMIZER_KWARGS = {
    "sgd": ("momentum", "dampening", "nesterov", *_TORCH),
    "lars": ("momentum", "dampening", "nesterov", "eta", "eps", "clip_lr", "exclude_bias_n_norm"),
    "adam": ("betas", "eps", "amsgrad", *_TORCH),
    "adamw": ("betas", "eps", "amsgrad", *_TORCH),
}

# Keys that solo-learn's own recipes carry without effect: accepted with one warning each.
IGNORED_KEYS = ("augmentations_cfg", "wandb_cfg")


@dataclass(frozen=True)
class Backbone:
    """`backbone`: which encoder, and what its builder receives."""

    name: str
    kwargs: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """`data` of a pretraining run; the last three keys are derived, not typed by users."""

    dataset: str
    train_path: str | None = None
    val_path: str | None = None
    format: Literal["image_folder", "dali", "h5", "resident", "webdataset"] = "image_folder"
    augment: Literal["workers", "device"] = "workers"
    resident_size: int | None = None
    skip_unreadable: bool = False
    no_labels: bool = False
    fraction: float = -1
    fraction_of: Literal["images", "classes"] = "images"
    num_workers: int = 4
    num_classes: int | None = None
    num_large_crops: int | None = None
    num_small_crops: int | None = None


@dataclass(frozen=True)
class LinearAugmentations:
    """`data.augmentations` of an evaluation (used by DALI)."""

    crop_size: int = 224
    mean: list = field(default_factory=lambda: list(IMAGENET_MEAN))
    std: list = field(default_factory=lambda: list(IMAGENET_STD))


@dataclass(frozen=True)
class LinearData(Data):
    """`data` of a linear evaluation or a fine-tuning; `image_size` None = the data set's own."""

    format: Literal["image_folder", "dali", "h5", "webdataset"] = "image_folder"
    image_size: int | None = None
    augmentations: LinearAugmentations = field(default_factory=LinearAugmentations)


@dataclass(frozen=True)
class Optimizer:
    """`optimizer`; `lr` is the value in effect after parsing, `lr_as_written` the user's."""

    name: str
    batch_size: int
    lr: float
    weight_decay: float
    classifier_lr: float | None = None
    exclude_bias_n_norm_wd: bool = False
    kwargs: dict = field(default_factory=dict)
    layer_decay: float = 0.0
    lr_as_written: float | None = None
    classifier_lr_as_written: float | None = None


@dataclass(frozen=True)
class Scheduler:
    """`scheduler`."""

    name: str
    lr_decay_steps: Any = None
    min_lr: float = 0.0
    warmup_start_lr: float = 3e-5
    warmup_epochs: float = 10
    interval: Literal["step", "epoch"] = "step"


@dataclass(frozen=True)
class Momentum:
    """`momentum`: the EMA encoder of momentum methods."""

    base_tau: float = 0.99
    final_tau: float = 1.0
    classifier: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """`checkpoint`: what is written, where, every how many epochs."""

    enabled: bool = False
    dir: str = "trained_models"
    frequency: int = 1
    keep_prev: bool = False


@dataclass(frozen=True)
class AutoResume:
    """`auto_resume`: continue the newest unfinished run of the same experiment."""

    enabled: bool = False
    max_hours: float = 36


@dataclass(frozen=True)
class AutoUMAP:
    """`auto_umap`: a UMAP picture of the validation set every few epochs."""

    enabled: bool = False
    dir: str = "auto_umap"
    frequency: int = 1


@dataclass(frozen=True)
class Dali:
    """`dali`."""

    device: Literal["gpu", "cpu"] = "gpu"
    encode_indexes_into_labels: bool = False


@dataclass(frozen=True)
class Wandb:
    """`wandb`."""

    enabled: bool = False
    entity: str | None = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass(frozen=True)
class TensorBoard:
    """`tensorboard`: event files beside metrics.csv."""

    enabled: bool = False


@dataclass(frozen=True)
class KnnEval:
    """`knn_eval`: the online k-nearest-neighbour classifier."""

    enabled: bool = False
    k: int = 20
    distance_func: Literal["euclidean", "cosine"] = "euclidean"


@dataclass(frozen=True)
class Performance:
    """`performance`."""

    disable_channel_last: bool = False
    compile: bool = False
    profile: bool = False


@dataclass(frozen=True)
class Run:
    """Top-level keys that every training program shares; other keys of Trainer pass through."""

    name: str
    max_epochs: int
    backbone: Backbone
    data: Data
    optimizer: Optimizer
    scheduler: Scheduler
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    auto_resume: AutoResume = field(default_factory=AutoResume)
    dali: Dali = field(default_factory=Dali)
    wandb: Wandb = field(default_factory=Wandb)
    tensorboard: TensorBoard = field(default_factory=TensorBoard)
    performance: Performance = field(default_factory=Performance)
    seed: int = 5
    resume_from_checkpoint: str | None = None
    wandb_run_id: str | None = None
    devices: Any = "auto"
    num_nodes: int = 1
    accelerator: str = "auto"
    strategy: Any = None
    precision: Any = "32-true"
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = 1
    imports: list | str | None = None


@dataclass(frozen=True)
class Pretrain(Run):
    """Everything that `main_pretrain.py` reads."""

    method: str = field(kw_only=True)
    augmentations: Any = field(kw_only=True)
    method_kwargs: dict = field(default_factory=dict)
    momentum: Momentum = field(default_factory=Momentum)
    auto_umap: AutoUMAP = field(default_factory=AutoUMAP)
    knn_eval: KnnEval = field(default_factory=KnnEval)
    debug_augmentations: bool = False


@dataclass(frozen=True)
class Linear(Run):
    """Everything that `main_linear.py` reads."""

    data: LinearData = field(kw_only=True)
    pretrained_feature_extractor: str | None = field(kw_only=True)
    pretrain_method: str | None = None
    eval_encoder: Literal["online", "momentum"] = "online"
    finetune: bool = False
    auto_augment: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    debug_augmentations: bool = False


@dataclass(frozen=True)
class RRC:
    """`rrc`: random resized crop."""

    enabled: bool = True
    crop_min_scale: float = 0.08
    crop_max_scale: float = 1.0


@dataclass(frozen=True)
class Probability:
    """An augmentation that only has a probability; `enabled` is accepted without effect."""

    prob: float = 0.0
    enabled: Any = None


@dataclass(frozen=True)
class ColorJitter(Probability):
    """`color_jitter`."""

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None


@dataclass(frozen=True)
class Rotation(Probability):
    """`rotation`: by an angle from -degrees to degrees."""

    degrees: float | None = None


@dataclass(frozen=True)
class Augmentation:
    """One entry of `augmentations`."""

    crop_size: int
    num_crops: int
    rrc: RRC = field(default_factory=RRC)
    color_jitter: ColorJitter = field(default_factory=ColorJitter)
    grayscale: Probability = field(default_factory=Probability)
    gaussian_blur: Probability = field(default_factory=Probability)
    solarization: Probability = field(default_factory=Probability)
    equalization: Probability = field(default_factory=Probability)
    horizontal_flip: Probability = field(default_factory=Probability)
    rotation: Rotation = field(default_factory=Rotation)
    padding: int | None = None
    mean: list | None = None
    std: list | None = None
