#!/usr/bin/env bash
# Caron et al., figure 2: full fine-tuning on VOC 2007 of what a sweep has left, pruned during pre-training or during
# the transfer itself.
#   bash scripts/tickets/voc.sh SWEEP VOCdevkit [key=value ...]     SWEEP: run folder, runs/tickets/imagenet/rotnet/seed-1
# OUT, LEVELS, PYTHON as for the launchers beside this file. What is complete is skipped.
set -euo pipefail
sweep=$(realpath "$1") voc=$(realpath "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
OUT=${OUT:-runs/tickets/voc} PYTHON=${PYTHON:-python3}
finetune() {  # NAME SECTION KEY=VALUE ...
    "$PYTHON" main_tickets.py --config-path scripts/pretrain/voc --config-name multilabel.yaml "$2" \
        "name=$1" "data.train_path='$voc'" "data.val_path='$voc'" "${@:3}"
}
finetune pruned-before +retrain=final "retrain.source='$sweep'" "retrain.dir='$OUT'" retrain.figure=voc07-fine-tuning \
    "retrain.curve='Pruned during pre-training'" "$@"
finetune pruned-during +tickets=sweep "tickets.levels=${LEVELS:-30}" "tickets.start='$sweep/level_00/final.safetensors'" \
    "tickets.dir='$OUT'" tickets.figure=voc07-fine-tuning "tickets.curve='Pruned during transfer'" "$@"
"$PYTHON" -m sparse_ext.tickets curves "$OUT" --metric val_map --output "$OUT/figures"
