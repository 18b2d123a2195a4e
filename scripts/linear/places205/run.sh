#!/usr/bin/env bash
# For example: bash scripts/linear/imagenet/run.sh linear pretrained_feature_extractor=PATH_TO_CKPT
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../launch.sh" linear places205 "$@"
