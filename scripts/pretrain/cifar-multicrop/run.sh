#!/usr/bin/env bash
# For example: bash scripts/pretrain/cifar-multicrop/run.sh byol optimizer.batch_size=512
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh" pretrain cifar-multicrop "$@"
