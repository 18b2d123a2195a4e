#!/usr/bin/env bash
# Makes a trained encoder sparse and lets it recover: pruning on unlabelled images (sparse_ext.prune), then
# distillation of the dense encoder's features with the masks fixed.
#   bash scripts/compress.sh SOURCE DATA SPARSITY [--out FOLDER] [--epochs N] [--method NAME] [--granularity NAME]
# SOURCE: run folder, checkpoint, timm:NAME, or a weight file with --backbone NAME. DATA: a folder of images,
# labelled or not, or digits. PYTHON chooses the interpreter. Stopped, the same command goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" -m scripts.experiments.compress "$@"
