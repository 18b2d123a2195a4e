# Sourced by quickstart.sh and test.sh: one virtual environment with this checkout installed in it.
VENV=${VENV:-.venv}

# ensure_environment [EXTRA]: makes $VENV and installs, or returns at once if that was done for this setup.py.
ensure_environment() {
    local extra=${1:-} stamp
    stamp="$VENV/.installed${extra:+-$extra}"
    if [[ -f $stamp ]] && cmp -s setup.py "$stamp"; then return; fi
    if [[ ! -x $VENV/bin/python ]]; then
        local python=${PYTHON:-python3}
        "$python" - <<'PY' || { echo "error: Python 3.10 or newer is needed; set PYTHON to one." >&2; exit 2; }
import sys
sys.exit(sys.version_info < (3, 10))
PY
        echo "Making the environment $VENV ..."
        "$python" -m venv "$VENV"
    fi
    echo "Installing into $VENV (PyTorch is large; this takes a few minutes the first time) ..."
    "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar on -q -e ".${extra:+[$extra]}"
    cp setup.py "$stamp"
}
