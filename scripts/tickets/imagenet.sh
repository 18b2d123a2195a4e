#!/usr/bin/env bash
# Caron et al. on ImageNet (figure 3a): ResNet-50, rewound to 3 x 1,281,167 images, 30 prunings, three seeds.
# Eight devices per program. Layer-wise (figure 4): SWEEP='tickets.layers=[conv1,layer1.*]' and another OUT.
DATA=imagenet PRESET=imagenet PRETEXTS=${PRETEXTS:-"rotnet exemplar"} RANDOM_MASKS=random_global
LEVELS=${LEVELS:-30} SEEDS=${SEEDS:-"1 2 3"} OUT=${OUT:-runs/tickets/imagenet} JOBS=${JOBS:-1}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run "$@"
