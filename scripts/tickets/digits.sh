#!/usr/bin/env bash
# A five-level sweep on the embedded digits, for a pretext and for labels: winning tickets, random re-init and random
# masks, re-trained on labels; writes runs/tickets/digits/figures/*.svg. Nothing is downloaded.
#   bash scripts/tickets/digits.sh [key=value ...]      LEVELS, SEEDS, OUT, JOBS, PYTHON: see common.sh
#   PRETEXTS  recipes of scripts/pretrain/digits. Not rotnet by default, which finds a shortcut on these images.
DATA=digits PRESET=digits PRETEXTS=${PRETEXTS:-lejepa} RANDOM_MASKS=random_global
LEVELS=${LEVELS:-5} SEEDS=${SEEDS:-5 6 7} OUT=${OUT:-runs/tickets/digits} JOBS=${JOBS:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # one thread each is faster than two threads for one after the other
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run backbone.kwargs.width=8 "$@"  # the encoder must be the same for every recipe
