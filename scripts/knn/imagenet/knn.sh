#!/usr/bin/env bash
# bash scripts/knn/imagenet/knn.sh CHECKPOINT_DIR [--option value ...]     the folder that holds args.json
exec bash "$(dirname "${BASH_SOURCE[0]}")/../grid.sh" \
    --dataset imagenet --train_data_path ./datasets/imagenet/train --val_data_path ./datasets/imagenet/val \
    --pretrained_checkpoint_dir "${1:?which checkpoint folder?}" "${@:2}"
