#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  safetensors 0.8.0, numpy 2.4.6.
# Guess:     the same tensors and the same metadata give the same bytes, so that a checksum says
#            whether two files hold the same weights.
# Behaviour: the header holds the metadata in another order at each call, in one process, too. The
#            tensors are sorted and their bytes are equal. With one metadata entry files are equal.
# Seen:      19 or 20 different checksums in 20 calls with six entries; one with a single entry.
exec "$(dirname "$0")/run_with" safetensors==0.8.0 numpy==2.4.6 <<'PYTHON'
import hashlib
import json
import struct

import numpy as np
import safetensors
from safetensors.numpy import load, save

from expect import expect

print(f"safetensors {safetensors.__version__}")
tensors = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.zeros(2, np.float32)}
metadata = {f"key{i}": str(i) for i in range(6)}
files = [save(tensors, metadata) for _ in range(20)]
sums = {hashlib.sha256(file).hexdigest() for file in files}
expect(f"{len(sums)} checksums of 20 files with six metadata entries", len(sums) > 1)


def parts(file):
    (length,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + length]), file[8 + length :]


headers, bodies = zip(*map(parts, files), strict=True)
expect("the metadata are the same", all(h["__metadata__"] == metadata for h in headers))
expect("in another order", len({tuple(h["__metadata__"]) for h in headers}) > 1)
expect("the bytes of the tensors are the same", len(set(bodies)) == 1)
expect("and so are the tensors", all(np.array_equal(load(f)["weight"], tensors["weight"]) for f in files))
single = {hashlib.sha256(save(tensors, {"key": "0"})).hexdigest() for _ in range(20)}
expect("one checksum with a single entry", len(single) == 1)
PYTHON
