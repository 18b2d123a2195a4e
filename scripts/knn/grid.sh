#!/usr/bin/env bash
# The grid of solo-learn's kNN scripts, for the launchers in the folders beside this file.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exec "${PYTHON:-python3}" "$root/main_knn.py" \
    --batch_size 256 \
    --num_workers 4 \
    --k 1 2 5 10 20 50 100 200 \
    --temperature 0.01 0.02 0.05 0.07 0.1 0.2 0.5 1 \
    --feature_type backbone projector \
    --distance_function euclidean cosine \
    "$@"
