# SPDX-License-Identifier: MIT
"""What a weight can be worth, by name (`sparse.score`). Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from solo.errors import ConfigError, did_you_mean
from solo.registry import Registry, resolve

#: what a scorer may be given beside the weight -> the same in words
NEEDS = {
    "weight": "nothing but the weights",
    "gradient": "the gradient of the step",
    "mean_gradient": "the running mean of |gradient|",
    "curvature": "second derivatives at the start of training",
}


class Scorer(NamedTuple):
    """How a score is computed, and where it makes sense.

    Attributes:
        function: `function(weight)`, or `function(weight, gradient)`, or with the running mean of
            |gradient| or H g in the place of the gradient; tensors of one layer's shape to a score
            of that shape, of which the largest are kept. Or where it is: `module:function`.
        needs: what it is given beside the weight, one of `NEEDS`.
        of_sum: where a unit's score is no mean of its weights': a function of the sum of what
            `function` returns for them, for a tensor with one sum per unit.
    """

    function: Callable[..., Any] | str
    needs: str = "weight"
    of_sum: Callable[[Any], Any] | str | None = None

    def __call__(self, *values: Any) -> Any:
        """The score of one layer's weights; with `of_sum` what is summed over a unit."""
        return resolve(self.function)(*values)

    def finish(self, sums: Any) -> Any:
        """Scores of units from the sums over their members."""
        return sums if self.of_sum is None else resolve(self.of_sum)(sums)


_SCORES = "sparse_ext.pruning.scores.scorers"

#: every scorer by the name that `sparse.score` takes
SCORERS: Registry[Scorer] = Registry(
    "score",
    {
        "magnitude": Scorer(f"{_SCORES}:magnitude"),
        "snip": Scorer(f"{_SCORES}:snip", "gradient"),
        "taylor": Scorer(f"{_SCORES}:first_order", "gradient", f"{_SCORES}:squared"),
        "mean_taylor": Scorer(f"{_SCORES}:mean_taylor", "mean_gradient"),
        "grasp": Scorer(f"{_SCORES}:grasp", "curvature"),
    },
)


def register_scorer(
    name: str,
    function: Callable[..., Any] | str,
    needs: str = "weight",
    of_sum: Callable[[Any], Any] | str | None = None,
) -> None:
    """Make a score known, so that `sparse.score=NAME` ranks weights by it.

    Args:
        name: what users write.
        function: see `Scorer.function`.
        needs: what it is given beside the weight: `weight` = nothing, `gradient` = the dense
            gradient of the step (of the first batch before the first step), `mean_gradient` = the
            running mean of that gradient's magnitude, `curvature` = the product of the Hessian
            with the gradient at the first batch.
        of_sum: see `Scorer.of_sum`.

    Raises:
        ConfigError: there is another score of that name, or nothing is known of such a need.
    """
    if needs not in NEEDS:
        raise ConfigError(f"register_scorer: needs={needs!r}. {did_you_mean(str(needs), NEEDS)}")
    SCORERS.register(name, Scorer(function, needs, of_sum))


def scorer_named(name: str) -> Scorer:
    """The scorer that the key `sparse.score` names."""
    return SCORERS.find(name, "sparse.score")
