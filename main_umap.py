# SPDX-License-Identifier: MIT
"""UMAP pictures of the features of a checkpoint.

python main_umap.py --dataset imagenet100 --train_data_path … --val_data_path … \\
    --pretrained_checkpoint_dir trained_models/byol/0
"""

from solo.programs.app import run_program


def main() -> None:
    """Entry point: also of the console command solo-umap."""
    from solo.args.umap import parse_args_umap
    from sparse_ext.extension import register

    register()
    args = parse_args_umap()

    def task() -> None:
        from solo.programs.umap import umap

        umap(args)

    run_program(task)


if __name__ == "__main__":
    main()
