#!/usr/bin/env bash
# bash scripts/knn/custom/knn.sh CHECKPOINT_DIR [--option value ...]     the folder that holds args.json
exec bash "$(dirname "${BASH_SOURCE[0]}")/../grid.sh" \
    --dataset custom --train_data_path PATH_TO_TRAIN_DIR --val_data_path PATH_TO_VAL_DIR \
    --pretrained_checkpoint_dir "${1:?which checkpoint folder?}" "${@:2}"
