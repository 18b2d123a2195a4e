#!/usr/bin/env bash
# Starts one program on one configuration; the launchers beside the configurations call this.
#   bash scripts/launch.sh KIND DATASET CONFIG [key=value ...]     KIND: pretrain, linear or finetune
# PYTHON chooses the interpreter, LAUNCHER what stands before it (for example "torchrun --nproc_per_node 4").
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kind=${1:?"usage: launch.sh pretrain|linear|finetune DATASET CONFIG [key=value ...]"}
dataset=${2:?"which dataset? one of: $(ls "$root/scripts/$kind" | xargs)"}
folder=$root/scripts/$kind/$dataset
configs=$(cd "$folder" && ls ./*.yaml | sed 's|^\./||; s|\.yaml$||' | xargs)
config=${3:-}
if [[ ! -f $folder/${config%.yaml}.yaml ]]; then
    echo "error: no configuration '$config' in scripts/$kind/$dataset. There are: $configs" >&2
    exit 2
fi
program=main_linear.py
[[ $kind == pretrain ]] && program=main_pretrain.py
# shellcheck disable=SC2086  # LAUNCHER is several words on purpose
exec ${LAUNCHER:-${PYTHON:-python3}} "$root/$program" --config-path "$folder" --config-name "${config%.yaml}.yaml" "${@:4}"
