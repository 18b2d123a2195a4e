# SPDX-License-Identifier: MIT
"""The keys of a run: names, types and defaults. The only place where defaults of `solo` live.

One frozen dataclass per section. A field without default is required by the programs; `Any`
marks a value that somebody else checks (the method, the backbone builder, Lightning).
Nothing here imports torch, so that a typo is reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from solo.data.views.augmentation_keys import Augmentation as Augmentation
from solo.values import number

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


@dataclass(frozen=True)
class OptimizerArguments:
    """What `optimizer.kwargs` may hold, for whichever optimizer takes it."""

    momentum: float = number(0.9, least=0)
    dampening: float = number(0.0)
    nesterov: bool = False
    eta: float = number(1e-3, least=0)
    eps: float = number(1e-8, least=0)
    clip_lr: bool = False
    exclude_bias_n_norm: bool = False
    betas: list = field(default_factory=lambda: [0.9, 0.999])
    amsgrad: bool = False
    foreach: bool | None = None
    maximize: bool = False
    capturable: bool = False
    differentiable: bool = False
    fused: bool | None = None


@dataclass(frozen=True)
class Backbone:
    """`backbone`: which encoder, and what its builder receives.

    `small_stem` gives a ResNet the 3x3 stem for small images; None = as the data set has it.
    """

    name: str
    kwargs: dict = field(default_factory=dict)
    small_stem: bool | None = None


@dataclass(frozen=True)
class Data:
    """`data` of a pretraining run; the last three keys are derived, not typed by users.

    `path` is a folder of own images, of which the other paths follow (docs/custom_data.md).
    `val_fraction` of every class validates, where there is no `val_path`. `image_size` is the side
    of the images that evaluation shows; None = that of the views. `num_workers` None = by the cores
    of the machine.
    """

    dataset: str
    path: str | None = None
    val_fraction: float = number(0.0, least=0, below=1)
    train_path: str | None = None
    val_path: str | None = None
    format: Literal["image_folder", "dali", "h5", "resident", "webdataset"] = "image_folder"
    augment: Literal["workers", "device"] = "workers"
    resident_size: int | None = number(None, least=1)
    skip_unreadable: bool = False
    exif: Literal["ignore", "apply"] = "ignore"
    value_range: list | None = None
    image_size: int | None = number(None, least=1)
    no_labels: bool = False
    fraction: float = number(-1, most=1)
    fraction_of: Literal["images", "classes"] = "images"
    num_workers: int | None = number(None, least=0)
    num_classes: int | None = None
    num_large_crops: int | None = None
    num_small_crops: int | None = None


@dataclass(frozen=True)
class LinearAugmentations:
    """`data.augmentations` of an evaluation: size, normalisation and crops of its images.

    None = as the encoder was trained; the values in effect stand there after parsing.
    """

    crop_size: int | None = number(None, least=1)
    crop_min_scale: float = number(0.08, least=0, most=1)
    mean: list | None = None
    std: list | None = None


@dataclass(frozen=True)
class LinearData(Data):
    """`data` of a linear evaluation or a fine-tuning; `image_size`, `exif` and
    `value_range` None = as the encoder was trained."""

    format: Literal["image_folder", "dali", "h5", "webdataset"] = "image_folder"
    exif: Literal["ignore", "apply"] | None = None  # type: ignore[assignment]
    augmentations: LinearAugmentations = field(default_factory=LinearAugmentations)


@dataclass(frozen=True)
class Optimizer:
    """`optimizer`; `lr` is the value in effect after parsing, `lr_as_written` the user's.

    `layer_decay` multiplies the rate of an encoder's layer once for every layer above it (0: off),
    `patch_embed_lr` that of a ViT's patch embedding; where `final_weight_decay` is given, the decay
    goes there on a cosine over the run.
    """

    name: str
    batch_size: int = field(metadata={"least": 1})
    lr: float = field(metadata={"least": 0})
    weight_decay: float = field(metadata={"least": 0})
    classifier_lr: float | None = number(None, least=0)
    exclude_bias_n_norm_wd: bool = False
    kwargs: dict = field(default_factory=dict)
    layer_decay: float = number(0.0, least=0)
    final_weight_decay: float | None = number(None, least=0)
    patch_embed_lr: float | None = number(None, least=0)
    lr_as_written: float | None = None
    classifier_lr_as_written: float | None = None


@dataclass(frozen=True)
class Scheduler:
    """`scheduler`: how the learning rate changes during the run."""

    name: str
    lr_decay_steps: Any = None
    min_lr: float = number(0.0, least=0)
    warmup_start_lr: float = number(3e-5, least=0)
    warmup_epochs: float = number(10, least=0)
    interval: Literal["step", "epoch"] = "step"


@dataclass(frozen=True)
class Momentum:
    """`momentum`: the EMA encoder of momentum methods; `schedule` null is a cosine."""

    base_tau: float = number(0.99, least=0, most=1)
    final_tau: float = number(1.0, least=0, most=1)
    classifier: bool = False
    schedule: Literal["cosine", "linear"] | None = None


@dataclass(frozen=True)
class Freeze:
    """`freeze`: parts of the encoder that stay as they started for the first epochs."""

    modules: list = field(default_factory=list)
    epochs: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """`checkpoint`: what is written, where, and when.

    Every `frequency` epochs, and every `every_n_steps` optimizer steps within an epoch. The last
    `keep_last` stay, all of them with `keep_prev`. `monitor` is a logged metric; the epoch with its
    best value (`mode`) is kept in `best/`, too.
    """

    enabled: bool = False
    dir: str = "trained_models"
    frequency: int = number(1, least=1)
    keep_prev: bool = False
    keep_last: int = number(2, least=1)
    every_n_steps: int | None = number(None, least=1)
    pack: bool = False
    monitor: str | None = None
    mode: Literal["max", "min"] | None = None


@dataclass(frozen=True)
class AutoResume:
    """`auto_resume`: continue the newest unfinished run of the same experiment."""

    enabled: bool = False
    max_hours: float = number(36, least=0, infinite=True)


@dataclass(frozen=True)
class AutoUMAP:
    """`auto_umap`: a UMAP picture of the validation set every few epochs."""

    enabled: bool = False
    dir: str = "auto_umap"
    frequency: int = number(1, least=1)


@dataclass(frozen=True)
class Dali:
    """`dali`: where NVIDIA DALI decodes and augments, and how it carries indexes."""

    device: Literal["gpu", "cpu"] = "gpu"
    encode_indexes_into_labels: bool = False


@dataclass(frozen=True)
class Wandb:
    """`wandb`: whether and where Weights & Biases logs the run."""

    enabled: bool = False
    entity: str | None = None
    project: str = "solo-learn"
    offline: bool = False


@dataclass(frozen=True)
class TensorBoard:
    """`tensorboard`: whether event files are written beside metrics.csv."""

    enabled: bool = False


@dataclass(frozen=True)
class KnnEval:
    """`knn_eval`: the online k-nearest-neighbour classifier and its settings."""

    enabled: bool = False
    k: int = number(20, least=1)
    distance_func: Literal["euclidean", "cosine"] = "euclidean"


@dataclass(frozen=True)
class Quality:
    """`quality`: RankMe, LiDAR and alpha-ReQ of an epoch's last `images`, every few epochs."""

    enabled: bool = True
    images: int = number(2048, least=2)
    every: int = number(1, least=1)


@dataclass(frozen=True)
class Probe:
    """`probes.NAME`: labelled data on which the encoder is evaluated while it is trained.

    `kind` knn votes among `k` neighbours, linear fits a classifier on the features; `every` so
    many epochs, and after the last one. `image_size` None = as evaluation shows the run's encoder
    images of that data set.
    """

    dataset: str
    train_path: str | None = None
    val_path: str | None = None
    kind: Literal["knn", "linear"] = "knn"
    every: int = number(5, least=1)
    encoder: Literal["online", "momentum"] = "online"
    k: int = number(20, least=1)
    image_size: int | None = number(None, least=1)
    format: Literal["image_folder", "h5", "webdataset"] = "image_folder"
    batch_size: int = number(256, least=1)
    num_workers: int = number(0, least=0)


@dataclass(frozen=True)
class Performance:
    """`performance`: memory format, compilation and profiling of the training step."""

    disable_channel_last: bool = False
    compile: bool = False
    profile: bool = False
    replay: bool | None = None


@dataclass(frozen=True)
class Run:
    """Top-level keys that every training program shares; other keys of Trainer pass through."""

    name: str
    max_epochs: int = field(metadata={"least": 1})
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
    seed: int = number(5, least=0, most=2**32 - 1)
    resume_from_checkpoint: str | None = None
    wandb_run_id: str | None = None
    devices: Any = "auto"
    num_nodes: int = number(1, least=1)
    accelerator: str = "auto"
    strategy: Any = None
    precision: Any = "32-true"
    sync_batchnorm: bool = False
    accumulate_grad_batches: int = number(1, least=1)
    imports: list | str | None = None
    strict: bool = False  # every unknown key is an error


@dataclass(frozen=True)
class TrainerArguments:
    """Arguments of Lightning's Trainer that fail late, or in a traceback, where they are wrong."""

    max_steps: int = number(-1, least=-1)
    min_steps: int | None = number(None, least=0)
    min_epochs: int | None = number(None, least=0)
    log_every_n_steps: int | None = number(None, least=1)
    check_val_every_n_epoch: int | None = number(1, least=1)
    val_check_interval: float | str | dict | None = field(default=None, metadata={"above": 0})
    limit_train_batches: float | None = number(None, least=0)
    limit_val_batches: float | None = number(None, least=0)
    overfit_batches: float = number(0.0, least=0)
    num_sanity_val_steps: int | None = number(None, least=-1)
    gradient_clip_val: float | None = number(None, least=0)
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    reload_dataloaders_every_n_epochs: int = number(0, least=0)
    fast_dev_run: bool | int = number(False, least=0)
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    detect_anomaly: bool = False
    barebones: bool = False
    inference_mode: bool = True
    use_distributed_sampler: bool = True
    enable_progress_bar: bool | None = None
    enable_model_summary: bool | None = None
    default_root_dir: str | None = None
    profiler: str | None = None


@dataclass(frozen=True)
class Pretrain(Run):
    """The keys that `main_pretrain.py` reads, with their types and defaults."""

    method: str = field(kw_only=True)
    augmentations: Any = field(kw_only=True)
    image_size: int | None = number(None, least=1)  # with data.path: side of what the encoder sees
    local_size: int | None = number(None, least=1)  # with data.path: side of the local views
    method_kwargs: dict = field(default_factory=dict)
    momentum: Momentum = field(default_factory=Momentum)
    init_from: str | None = None
    init_allow_missing: list = field(default_factory=list)
    freeze: Freeze = field(default_factory=Freeze)
    auto_umap: AutoUMAP = field(default_factory=AutoUMAP)
    knn_eval: KnnEval = field(default_factory=KnnEval)
    quality: Quality = field(default_factory=Quality)
    probes: dict = field(default_factory=dict)
    milestones: dict = field(default_factory=dict)
    debug_augmentations: bool = False
    dry_run: bool = False
    report: bool = False


@dataclass(frozen=True)
class Linear(Run):
    """The keys that `main_linear.py` reads, with their types and defaults."""

    data: LinearData = field(kw_only=True)
    pretrained_feature_extractor: str | None = field(kw_only=True)
    pretrain_method: str | None = None
    eval_encoder: Literal["online", "momentum"] = "online"
    finetune: bool = False
    auto_augment: bool = False
    label_smoothing: float = number(0.0, least=0, below=1)
    mixup: float = number(0.0, least=0)
    cutmix: float = number(0.0, least=0)
    debug_augmentations: bool = False
