#!/usr/bin/env bash
# The main job on an embedded default, nothing downloaded but packages: pretrains a dense and a sparse encoder
# without labels, evaluates both, prints a table and writes runs/quickstart/{report.html,summary.json}.
#   bash scripts/quickstart.sh [--fresh]       VENV chooses the environment (default .venv), PYTHON what makes it
# Interrupted, the same command goes on where it was; --fresh runs everything again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment
exec "$VENV/bin/python" -m scripts.experiments.quickstart "$@"
