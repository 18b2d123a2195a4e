#!/usr/bin/env bash
# Trains and evaluates every method at several sparsities and seeds on a small data set, and writes the figures to
# benchmarks/results/<board>_leaderboard.json as cells finish. Stopped, the same command goes on.
#   bash scripts/experiments/leaderboard.sh digits [--processes N] [--only 'synccp-*'] [--list]
# --known FILE counts the cells of such a file as done: only what is missing in it is trained.
# The environment: VENV chooses it (default .venv), PYTHON what makes it; or PYTHON_IN_USE names a ready interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [[ -z ${PYTHON_IN_USE:-} ]]; then
    source scripts/environment.sh
    ensure_environment
    PYTHON_IN_USE="$VENV/bin/python"
fi
exec "$PYTHON_IN_USE" -m scripts.experiments.leaderboard "$@"
