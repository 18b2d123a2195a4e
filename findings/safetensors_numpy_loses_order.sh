#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  safetensors 0.8.0, numpy 2.4.6, scikit-learn 1.9.1.
# Guess:     a saved array comes back equal, or an array that is not C-contiguous is refused, as
#            safetensors.torch refuses it.
# Behaviour: safetensors.numpy writes the bytes as they lie in memory under the shape of the array.
#            An array in Fortran order comes back with its elements permuted, without error or
#            warning. coef_ of scikit-learn's LogisticRegression is in Fortran order: a linear
#            probe saved this way is another classifier when it is loaded.
# Seen:      accuracy of the probe on 597 digits: 0.921 before saving, 0.104 after loading;
#            safetensors.torch raises ValueError for the same array.
exec "$(dirname "$0")/run_with" safetensors==0.8.0 numpy==2.4.6 scikit-learn==1.9.1 torch==2.14.1 \
    <<'PYTHON'
import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from expect import expect

print(f"safetensors {safetensors.__version__}, numpy {np.__version__}")
X, y = load_digits(return_X_y=True)
train, test = (X[:1200] / 16, y[:1200]), (X[1200:] / 16, y[1200:])
probe = LogisticRegression(max_iter=1000).fit(*train)
coef = probe.coef_
expect("coef_ is not C-contiguous", not coef.flags["C_CONTIGUOUS"])

before = probe.score(*test)
safetensors.numpy.save_file({"coef": coef}, "probe.safetensors")
loaded = safetensors.numpy.load_file("probe.safetensors")["coef"]
probe.coef_ = loaded
after = probe.score(*test)
expect(
    "the loaded array has the same shape and sum",
    loaded.shape == coef.shape and np.isclose(loaded.sum(), coef.sum()),
)
expect("and other elements", not np.array_equal(loaded, coef))
expect(f"accuracy {before:.3f} before, {after:.3f} after", before > 0.85 and after < 0.5)

safetensors.numpy.save_file({"coef": np.ascontiguousarray(coef)}, "probe.safetensors")
again = safetensors.numpy.load_file("probe.safetensors")["coef"]
expect("np.ascontiguousarray first is right", np.array_equal(again, coef))
try:
    safetensors.torch.save_file({"coef": torch.from_numpy(coef)}, "probe.safetensors")
    refused = False
except ValueError:
    refused = True
expect("safetensors.torch refuses the same array", refused)
PYTHON
