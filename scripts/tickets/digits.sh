#!/usr/bin/env bash
# A five-level sweep on the embedded digits, for rotnet and for labels: winning tickets, random re-init and random
# masks, re-trained on labels; writes runs/tickets/digits/figures/*.svg. Nothing is downloaded.
#   bash scripts/tickets/digits.sh [key=value ...]      LEVELS, SEEDS, OUT, JOBS, PYTHON: see common.sh
DATA=digits PRESET=digits PRETEXTS=rotnet RANDOM_MASKS=random_global
LEVELS=${LEVELS:-5} SEEDS=${SEEDS:-5} OUT=${OUT:-runs/tickets/digits} JOBS=${JOBS:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # one thread each is faster than two threads for one after the other
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run "$@"
