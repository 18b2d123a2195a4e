#!/usr/bin/env bash
# Rows: bash scripts/gating/imagenet100/cdg_table5.sh --list; one of them: bash scripts/gating/imagenet100/cdg_table5.sh ROW [key=value ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../sparse/launch.sh" imagenet100 cdg_table5 "$@"
