#!/usr/bin/env bash
# What the launchers beside this file share. Set before sourcing:
#   DATA      folder below scripts/pretrain           PRESET  option of +tickets=
#   LEVELS    prunings                                SEEDS   one sweep each
#   PRETEXTS  recipes that are pruned without labels, besides `supervised`
#   SWEEP     further KEY=VALUE for the sweeps alone, such as tickets.layers=[conv1,layer1.*]
#   OUT       where run folders and figures go        JOBS    programs at a time
# Everything that is complete is skipped, so a launcher that was stopped goes on with the same command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
PYTHON=${PYTHON:-python3}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT

# one program in the background, at most $JOBS at a time; the first failure ends the launcher
start() {
    while (( $(jobs -rp | wc -l) >= JOBS )); do wait -n; done
    local log=$OUT/logs/$1.log
    mkdir -p "$OUT/logs"
    echo "$(date +%T) $1"
    ( "$PYTHON" main_tickets.py --config-path "scripts/pretrain/$DATA" "${@:2}" ++enable_progress_bar=false \
        >"$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; } ) &
}
finish() { while (( $(jobs -rp | wc -l) )); do wait -n; done; wait; }

declare -A TITLE=([supervised]=Labels [rotnet]=RotNet [exemplar]=Exemplar [lejepa]=LeJEPA [mocov3]="MoCo v3" [npid]=NPID [s4l]=S4L)
sweep() {  # RECIPE SEED: prune it; with labels that is the winning tickets' curve already
    local figure=online-classifier curve="${TITLE[$1]}"
    [[ $1 == supervised ]] && figure=retrained-on-labels && curve+=", winning tickets"
    start "$1-$2" --config-name "$1.yaml" "+tickets=$PRESET" "tickets.levels=$LEVELS" "tickets.dir='$OUT'" \
        "tickets.figure=$figure" "tickets.curve='$curve'" "++seed=$2" "name=$1" "${MORE[@]}" ${SWEEP:-}
}
retrain() {  # RECIPE SEED KIND TITLE: train on labels under the masks of a sweep
    start "$1-$3-$2" --config-name supervised.yaml "+retrain=$3" "retrain.source='$OUT/$1/seed-$2'" \
        "retrain.dir='$OUT'" retrain.figure=retrained-on-labels "retrain.curve='$4'" "++seed=$2" \
        "name=$1-$3" "${MORE[@]}"
}

run() {  # further KEY=VALUE for every program
    MORE=("$@")
    local seed recipe
    for seed in $SEEDS; do for recipe in supervised $PRETEXTS; do sweep "$recipe" "$seed"; done; done
    finish
    for seed in $SEEDS; do
        for recipe in $PRETEXTS; do retrain "$recipe" "$seed" winning_ticket "${TITLE[$recipe]}, winning tickets"; done
        for recipe in supervised $PRETEXTS; do
            retrain "$recipe" "$seed" random_reinit "${TITLE[$recipe]}, random re-init"
        done
        retrain supervised "$seed" "$RANDOM_MASKS" Random
        for kind in ${MORE_MASKS:-}; do retrain supervised "$seed" "$kind" "Random, ${kind/_/ }"; done
    done
    finish
    "$PYTHON" -m sparse_ext.tickets curves "$OUT" --output "$OUT/figures"
}
