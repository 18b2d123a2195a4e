#!/usr/bin/env bash
# bash scripts/umap/custom/umap.sh CHECKPOINT_DIR [--option value ...]     the folder that holds args.json
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
exec "${PYTHON:-python3}" "$root/main_umap.py" \
    --dataset custom \
    --train_data_path PATH_TO_TRAIN_DIR \
    --val_data_path PATH_TO_VAL_DIR \
    --batch_size 256 \
    --num_workers 4 \
    --pretrained_checkpoint_dir "${1:?which checkpoint folder?}" "${@:2}"
