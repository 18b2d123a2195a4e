#!/usr/bin/env bash
# For example: bash scripts/finetune/imagenet/run.sh finetune pretrained_feature_extractor=PATH_TO_CKPT
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh" finetune imagenet "$@"
