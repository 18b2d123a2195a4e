#!/usr/bin/env bash
# bash scripts/knn/digits/knn.sh CHECKPOINT_DIR [--option value ...]     the folder that holds args.json
exec bash "$(dirname "${BASH_SOURCE[0]}")/../grid.sh" \
    --dataset digits --train_data_path ./datasets --val_data_path ./datasets \
    --pretrained_checkpoint_dir "${1:?which checkpoint folder?}" "${@:2}"
