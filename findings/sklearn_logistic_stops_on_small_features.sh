#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Versions:  scikit-learn 1.9.1, numpy 2.4.6.
# Guess:     features s times as large with C / s^2 are the same problem, so LogisticRegression
#            gives the same predictions; and if it stopped early, it would say so
#            (ConvergenceWarning).
# Behaviour: the default solver stops when the gradient is below tol = 1e-4, an absolute number,
#            and the gradient shrinks with the features. For small ones it is below tol before the
#            first step: the classifier predicts one class, n_iter_ is 1 and nothing warns, as this
#            counts as converged. solver="newton-cholesky" is right at every scale. Features of a
#            collapsed or l2-normalised wide encoder are small.
# Seen:      597 digits, features of size 1, 0.1, 0.01, 0.001: accuracy 0.921, 0.921, 0.888, 0.099
#            after 70, 70, 31, 1 iterations; newton-cholesky 0.921 each time; no warnings.
exec "$(dirname "$0")/run_with" scikit-learn==1.9.1 numpy==2.4.6 <<'PYTHON'
import warnings

import sklearn
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from expect import expect

print(f"scikit-learn {sklearn.__version__}")
X, y = load_digits(return_X_y=True)
X = X / 16


def accuracy(scale, solver):
    probe = LogisticRegression(C=1 / scale**2, max_iter=2000, solver=solver)
    probe.fit(scale * X[:1200], y[:1200])
    return probe.score(scale * X[1200:], y[1200:]), int(probe.n_iter_[0])


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    default = {scale: accuracy(scale, "lbfgs") for scale in (1.0, 0.1, 0.01, 0.001)}
    newton = {scale: accuracy(scale, "newton-cholesky") for scale in default}
for scale, (score, steps) in default.items():
    print(f"scale {scale}: lbfgs {score:.3f} in {steps}, newton-cholesky {newton[scale][0]:.3f}")
expect(
    "newton-cholesky does not mind the scale",
    max(score for score, _ in newton.values()) - min(score for score, _ in newton.values()) < 0.005,
)
expect("at 0.01 lbfgs is worse", default[0.01][0] < default[1.0][0] - 0.01)
expect("at 0.001 it predicts one class", default[0.001][0] < 0.15 and default[0.001][1] <= 1)
expect(f"{len(caught)} warnings", not caught)
PYTHON
