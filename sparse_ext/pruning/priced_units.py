# SPDX-License-Identifier: MIT
"""Channels whose budget is what the network costs (`sparse.budget`), and the choice of units.

With a budget every sparsity of a run, from the ramp's first to its last, is the share of the
parameters or of the multiply-accumulates that is gone. How many units that takes depends on which
they are, and is found by bisection each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from solo.errors import ConfigError
from sparse_ext.config.budget_names import Budget
from sparse_ext.config.granularity_names import Spelling
from sparse_ext.config.sections import SparseConfig
from sparse_ext.masks.channels.costs import Macs, Parameters
from sparse_ext.masks.encoder import Encoder
from sparse_ext.masks.granularity import Granularity
from sparse_ext.masks.living_weights import LatentEncoder
from sparse_ext.pruning.coupled_units import CoupledUnits
from sparse_ext.pruning.log import log
from sparse_ext.pruning.units import Kept, Units

EQUAL = 1e-9  # of the costs: rounding
FEW = 3  # units by which costs may stay below a budget


def make_units(config: SparseConfig, encoder: Encoder, regrows: bool = False) -> Units:
    """The units of `config.granularity`; channel groups with `config.coupled`.

    Args:
        config: of the run.
        encoder: whose masks are made.
        regrows: gradients bring units back, and have to reach them.

    Raises:
        ConfigError: see `CoupledUnits`; or for weights that live on under their masks.
    """
    if not config.coupled:
        return Units(config.spelling, encoder.masks.shapes)
    if isinstance(encoder, LatentEncoder):
        raise ConfigError(
            f"sparse.coupled is for methods that store pruned weights as zero, and "
            f"sparse.name={config.name} keeps them alive here: leave sparse.coupled out."
        )
    parts = config.spelling, encoder, encoder.module
    units = (
        CoupledUnits(*parts)
        if config.spending is None
        else PricedUnits(*parts, not regrows, config.spending)
    )
    facts = [f"  {name}: {reason}" for name, reason in units.staying.items()]
    log.info(
        "%d groups of channels can go, of %d kinds.%s",
        *(units.total, len(units.sizes), "\n".join([" These stay:", *facts]) if facts else ""),
    )
    return units


class PricedUnits(CoupledUnits):
    """Channel groups that go until the others cost no more than a share of the whole.

    Args:
        granularity: as of `CoupledUnits`.
        encoder: as of `CoupledUnits`.
        net: as of `CoupledUnits`.
        both_sides: as of `CoupledUnits`.
        budget: what is counted.
    """

    def __init__(
        self,
        granularity: str | Spelling | Granularity,
        encoder: Encoder,
        net: nn.Module,
        both_sides: bool,
        budget: Budget,
    ) -> None:
        super().__init__(granularity, encoder, net, both_sides)
        self._costs: Parameters | Macs
        self._costs = Parameters(self.channels) if budget.kind == "params" else Macs(self.channels)

    def count_costs(self, shape: tuple[int, ...] | None) -> None:
        """Multiply-accumulates are those of images of that shape from now on."""
        if isinstance(self._costs, Macs):
            self._costs = Macs(self.channels, shape)

    def cost(self, kept: Kept) -> float:
        """What the network costs with these units alone, over what it costs with all."""
        everything = np.zeros(self.channels.units, dtype=bool)
        return self._costs(self.going(kept)) / self._costs(everything)

    def going(self, kept: Kept) -> np.ndarray:
        """Which units of the network go where only these groups are kept: bool per unit."""
        flat = torch.cat([~kept[name].cpu() for name in self.sizes])
        return np.append(flat.numpy(), False)[self._groups[:-1]]

    def check(self, sparsity: float) -> None:
        """Raise ConfigError if the network costs more even with one group per space."""
        least = self.cost({name: torch.arange(n) == 0 for name, n in self.sizes.items()})
        if least <= 1 - sparsity:
            return
        facts = [f"{name}: {reason}" for name, reason in list(self.staying.items())[:3]]
        raise ConfigError(
            f"sparse.budget: {1 - sparsity:.3g} of the network's costs are to be left, and "
            f"{least:.3g} of them cannot go ({'; '.join(facts) or 'a channel of each layer'}). "
            f"Raise the budget."
        )

    def share_pruned(self, masks: Mapping[str, Tensor]) -> float:
        """The share of the costs that is gone."""
        return 1 - self.cost(self.kept(masks))

    def compare(self, masks: Mapping[str, Tensor], sparsity: float) -> int:
        """As the base class; masks may cost less by what a few groups cost."""
        left = self.cost(self.kept(masks)) - (1 - sparsity)
        return int(left > EQUAL) - int(left < -self._slack())

    def _slack(self) -> float:
        full = {name: torch.ones(n, dtype=torch.bool) for name, n in self.sizes.items()}
        without = [full | {name: torch.arange(n) > 0} for name, n in self.sizes.items()]
        return FEW * max(1 - self.cost(kept) for kept in without)

    def within(
        self, choose: Callable[[float], Kept], sparsity: float, eligible: Kept | None = None
    ) -> Kept:
        """As few groups go as leave no more than that share of the costs; by bisection.

        Raises:
            ConfigError: see `check`.
        """
        there = self.total if eligible is None else sum(int(k.sum()) for k in eligible.values())
        fewest, most = self.total - there, self.total - len(self.sizes)
        if sparsity <= 0:
            return choose(fewest / self.total)
        self.check(sparsity)
        while fewest < most:
            middle = (fewest + most) // 2
            if self.cost(choose(middle / self.total)) <= 1 - sparsity + EQUAL:
                most = middle
            else:
                fewest = middle + 1
        return choose(most / self.total)
