#!/usr/bin/env bash
# Rows: bash scripts/gating/cifar10/cdg_table6.sh --list; one of them: bash scripts/gating/cifar10/cdg_table6.sh ROW [key=value ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../../sparse/launch.sh" cifar10 cdg_table6 "$@"
