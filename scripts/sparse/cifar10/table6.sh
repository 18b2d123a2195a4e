#!/usr/bin/env bash
# Rows: bash scripts/sparse/cifar10/table6.sh --list; one of them: bash scripts/sparse/cifar10/table6.sh ROW [key=value ...]
exec bash "$(dirname "${BASH_SOURCE[0]}")/../launch.sh" cifar10 table6 "$@"
