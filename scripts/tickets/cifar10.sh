#!/usr/bin/env bash
# Caron et al. on CIFAR-10 (figure 3b): ResNet-18, rewound to one epoch, 30 prunings, six seeds. For VGG-19:
#   bash scripts/tickets/cifar10.sh backbone.name=vgg19       with OUT=runs/tickets/cifar10-vgg19
# Random masks also start from the natural sparsity of the dense network (section 4.3 of the paper).
DATA=cifar PRESET=cifar PRETEXTS=${PRETEXTS:-"rotnet exemplar"} RANDOM_MASKS=random_global MORE_MASKS=natural
LEVELS=${LEVELS:-30} SEEDS=${SEEDS:-"1 2 3 4 5 6"} OUT=${OUT:-runs/tickets/cifar10} JOBS=${JOBS:-1}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
run "$@"
