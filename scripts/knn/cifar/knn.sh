#!/usr/bin/env bash
# bash scripts/knn/cifar/knn.sh CHECKPOINT_DIR [--option value ...]     the folder that holds args.json
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
exec "${PYTHON:-python3}" "$root/main_knn.py" \
    --dataset cifar10 \
    --train_data_path ./datasets \
    --val_data_path ./datasets \
    --batch_size 256 \
    --num_workers 4 \
    --k 1 2 5 10 20 50 100 200 \
    --temperature 0.01 0.02 0.05 0.07 0.1 0.2 0.5 1 \
    --feature_type backbone projector \
    --distance_function euclidean cosine \
    --pretrained_checkpoint_dir "${1:?which checkpoint folder?}" "${@:2}"
