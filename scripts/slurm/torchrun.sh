#!/usr/bin/env bash
# Starts the processes of one node. By hand on one machine:
#   NPROC=4 bash scripts/slurm/torchrun.sh scripts/pretrain/imagenet byol.yaml [key=value ...]
# On several, once per node, with NNODES, NODE_RANK and MASTER_ADDR set (pretrain.sbatch does that).
set -euo pipefail
config_path=${1:?"usage: torchrun.sh CONFIG_PATH CONFIG_NAME [key=value ...]"}
config_name=${2:?"which configuration?"}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
nproc=${NPROC:-1}
# The processes belong to torchrun; Lightning must not look for SLURM's tasks as well.
unset SLURM_NTASKS SLURM_JOB_NAME
exec "${PYTHON:-python3}" -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$nproc" \
    --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}" \
    "$root/${PROGRAM:-main_pretrain.py}" --config-path "$(realpath "$config_path")" --config-name "$config_name" \
    strategy=ddp "devices=[$(seq -s, 0 $((nproc - 1)))]" "++num_nodes=${NNODES:-1}" "${@:3}"
