#!/usr/bin/env bash
# Runs rows of a paper's table; the launchers table*.sh and dual_table*.sh call this.
#   bash scripts/sparse/launch.sh DATASET TABLE --list | ROW [key=value ...] | --summary | --help
# PYTHON chooses the interpreter, LAUNCHER what stands before the programs (for example "torchrun --nproc_per_node 4").
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "${PYTHON:-python3}" -m scripts.experiments.tables "$@"
