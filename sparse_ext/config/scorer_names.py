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
    "curvature": "second derivatives at the start of training",
}


class Scorer(NamedTuple):
    """How a score is computed, and where it makes sense.

    Attributes:
        function: `function(weight)`, or `function(weight, gradient)`, or with H g in the place of
            the gradient; tensors of one layer's shape to a score of that shape, of which the
            largest are kept. Or where it is: `module:function`.
        needs: `weight`, `gradient` or `curvature`, one of `NEEDS`.
    """

    function: Callable[..., Any] | str
    needs: str = "weight"

    def __call__(self, *values: Any) -> Any:
        """The score of one layer's weights."""
        return resolve(self.function)(*values)


_SCORES = "sparse_ext.pruning.scores.scorers"

#: every scorer by the name that `sparse.score` takes
SCORERS: Registry[Scorer] = Registry(
    "score",
    {
        "magnitude": Scorer(f"{_SCORES}:magnitude"),
        "snip": Scorer(f"{_SCORES}:snip", "gradient"),
        "grasp": Scorer(f"{_SCORES}:grasp", "curvature"),
    },
)


def register_scorer(name: str, function: Callable[..., Any] | str, needs: str = "weight") -> None:
    """Make a score known, so that `sparse.score=NAME` ranks weights by it.

    Args:
        name: what users write.
        function: see `Scorer.function`.
        needs: what it is given beside the weight: `weight` = nothing, `gradient` = the dense
            gradient of the step (of the first batch before the first step), `curvature` = the
            product of the Hessian with the gradient at the first batch.

    Raises:
        ConfigError: there is another score of that name, or nothing is known of such a need.
    """
    if needs not in NEEDS:
        raise ConfigError(f"register_scorer: needs={needs!r}. {did_you_mean(str(needs), NEEDS)}")
    SCORERS.register(name, Scorer(function, needs))


def scorer_named(name: str) -> Scorer:
    """The scorer that the key `sparse.score` names."""
    return SCORERS.find(name, "sparse.score")
