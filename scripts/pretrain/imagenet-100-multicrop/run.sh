#!/usr/bin/env bash
# For example: bash scripts/pretrain/imagenet-100-multicrop/run.sh byol optimizer.batch_size=512
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh" pretrain imagenet-100-multicrop "$@"
