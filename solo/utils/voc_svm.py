# SPDX-License-Identifier: MIT
"""Linear SVMs on features and mean average precision, as Goyal et al. (2019) evaluate VOC 2007.

Their benchmark trains with images that show a class only with difficulty among the negatives, and
leaves them out of the test; it chooses the cost by scikit-learn's average precision, and reports
the area under the interpolated curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from solo.errors import ConfigError, DataError, did_you_mean

#: 0.01, 0.1 and 0.5^4 ... 0.5^19
COSTS = (0.01, 0.1, *(0.5**k for k in range(4, 20)))
FOLDS = 3
#: `goyal`: the benchmark's; `left_out`: difficult images are in no set, one precision everywhere
PROTOCOLS = ("goyal", "left_out")


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the interpolated precision-recall curve (VOC from 2010 on), in [0, 1].

    Args:
        scores: (N,); items with equal scores count as found together.
        labels: (N,), 1 present, 0 absent, -1 left out.

    Raises:
        DataError: no item is present.
    """
    from sklearn.metrics import precision_recall_curve

    counted = labels != -1
    hits = labels[counted] == 1
    if not hits.any():
        raise DataError("average precision needs at least one image that shows the class")
    precision, recall, _ = precision_recall_curve(hits, scores[counted])  # recall falls to 0
    return float(-np.diff(recall) @ np.maximum.accumulate(precision[:-1]))


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of `average_precision` over the classes that some image shows, in [0, 1]; 0 for none.

    Args:
        scores: (N, C).
        labels: (N, C), 1 present, 0 absent, -1 left out.
    """
    shown = np.flatnonzero((labels == 1).any(axis=0))
    each = [average_precision(scores[:, c], labels[:, c]) for c in shown]
    return float(np.mean(each)) if each else 0.0


def linear_svm(cost: float):
    """scikit-learn's SVM with the benchmark's settings (its labels are booleans, 2:1)."""
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost,
        class_weight={True: 2, False: 1},
        intercept_scaling=1.0,
        penalty="l2",
        loss="squared_hinge",
        tol=1e-4,
        dual=True,
        max_iter=2000,
        random_state=0,
    )


def normalised(features: np.ndarray) -> np.ndarray:
    """Rows of norm 1, (N, F); rows of zeros stay."""
    from sklearn.preprocessing import normalize

    return normalize(features)


def select_cost(
    features: np.ndarray,
    labels: np.ndarray,
    costs: Sequence[float] = COSTS,
    protocol: str = "goyal",
) -> tuple[float, dict[float, float]]:
    """The cost with the best 3-fold average precision; the first of equals.

    Args:
        features: (N, F).
        labels: (N,), 1 present, 0 absent, -1 difficult.
        costs: candidates.
        protocol: `goyal`: difficult images are negatives, precision is scikit-learn's;
            `left_out`: they are left out, and precision is `average_precision`.

    Returns:
        the cost, and the mean precision of each.

    Raises:
        ConfigError: there is no such protocol.
        DataError: too few images to put one with and one without the class into each fold.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import GridSearchCV

    counted = _trains(labels, protocol)
    x, y = features[counted], labels[counted] == 1
    if min(y.sum(), (~y).sum()) < FOLDS:
        raise DataError(
            f"{FOLDS}-fold cross-validation needs {FOLDS} images with and without the class; there "
            f"are {y.sum()} and {(~y).sum()}"
        )

    def score(svm, x: np.ndarray, y: np.ndarray) -> float:
        found = svm.decision_function(x)
        if protocol == "goyal":
            return float(average_precision_score(y, found))
        return average_precision(found, y.astype(int))

    search = GridSearchCV(linear_svm(1.0), {"C": list(costs)}, scoring=score, cv=FOLDS, refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(x, y)
    means = map(float, search.cv_results_["mean_test_score"])
    return search.best_params_["C"], dict(zip(costs, means, strict=True))


def _trains(labels: np.ndarray, protocol: str) -> np.ndarray:
    """Which images a class's SVM is trained with."""
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol={protocol!r} is unknown. {did_you_mean(protocol, PROTOCOLS)}")
    return np.ones(len(labels), bool) if protocol == "goyal" else labels != -1


@dataclass(frozen=True)
class SVMResult:
    """Per class: average precision on the test set and the cost chosen; `map` in percent."""

    precision: dict[str, float]
    costs: dict[str, float]

    @property
    def map(self) -> float:
        """Mean of the average precisions, in percent."""
        return 100 * float(np.mean(list(self.precision.values())))


def evaluate(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    costs: Sequence[float] = COSTS,
    protocol: str = "goyal",
) -> SVMResult:
    """One SVM per class: cost by cross-validation, refit on all of `train`, precision on `test`.

    Args:
        train: features (N, F) and labels (N, classes) with 1, 0 and -1 (difficult).
        test: the same; difficult images are left out.
        classes: their names.
        costs: candidates.
        protocol: see `select_cost`.

    Raises:
        ConfigError: there is no such protocol.
        DataError: a class has too few images.
    """
    x, y = normalised(train[0]), train[1]
    unseen = normalised(test[0])
    precision, chosen = {}, {}
    for index, name in enumerate(classes):
        try:
            chosen[name], _ = select_cost(x, y[:, index], costs, protocol)
            counted = _trains(y[:, index], protocol)
            svm = linear_svm(chosen[name]).fit(x[counted], y[counted, index] == 1)
            precision[name] = average_precision(svm.decision_function(unseen), test[1][:, index])
        except DataError as error:
            raise DataError(f"class '{name}': {error}") from error
    return SVMResult(precision, chosen)
