#!/usr/bin/env bash
# Rows: bash scripts/sparse/imagenet/table5.sh --list; one of them: bash scripts/sparse/imagenet/table5.sh ROW [key=value ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" imagenet table5 "$@"
