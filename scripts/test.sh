#!/usr/bin/env bash
# Makes the environment if there is none, installs the test extras, runs the tests.
#   bash scripts/test.sh [pytest options]      VENV chooses the environment (default .venv), PYTHON what makes it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment test
"$VENV/bin/ruff" check .
exec "$VENV/bin/python" -m pytest -n "$(nproc)" --dist loadfile "$@"
