#!/usr/bin/env bash
# Copies a dataset to the node's local disk once; later jobs on the node find it there.
#   bash scripts/slurm/stage_data.sh ARCHIVE.tar[.gz|.xz] TARGET_FOLDER
set -euo pipefail
archive=${1:?"usage: stage_data.sh ARCHIVE TARGET_FOLDER"}
target=${2:?"where to?"}
[[ -f $archive ]] || { echo "error: no archive $archive" >&2; exit 2; }
stamp=$target/.staged-$(basename "$archive")-$(stat -c %s-%Y "$archive")
mkdir -p "$target"
# The lock keeps two jobs on one node from unpacking at once; the stamp appears only after the last file.
exec 9>"$target/.lock"
flock 9
if [[ -f $stamp ]]; then echo "$archive is already in $target"; exit 0; fi
echo "unpacking $archive into $target ..."
tar -xf "$archive" -C "$target"
touch "$stamp"
