# SPDX-License-Identifier: MIT
"""k-nearest-neighbour evaluation of a checkpoint.

python main_knn.py --dataset imagenet100 --train_data_path … --val_data_path … \\
    --pretrained_checkpoint_dir trained_models/byol/0
"""

from solo.programs.app import run_program


def main() -> None:
    """Entry point: also of the console command solo-knn."""
    from solo.args.knn import parse_args_knn
    from sparse_ext.extension import register

    register()
    args = parse_args_knn()

    def task() -> None:
        from solo.programs.knn import knn

        knn(args)

    run_program(task)


def __getattr__(name: str):
    """`extract_features` and `run_knn`, which import torch, on first use."""
    if name in ("extract_features", "run_knn"):
        from solo.programs import knn

        return getattr(knn, name)
    raise AttributeError(f"module 'main_knn' has no attribute '{name}'")


if __name__ == "__main__":
    main()
