"""Cost-aware wrapper: another strategy's utility per dollar of a query."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.acquisition.random import Random
from models.core.registry import OneOf


class CostAware(Acquisition):
    """Utility / cost^γ, taken greedily while the money lasts (ours). γ = 0 is the inner strategy within the money.

    Utilities are shifted so that the least wanted tuple has 0, whatever their sign. A strategy that picks as a batch is
    asked to rank the whole pool once, and each tuple of a pair stands alone.
    """

    kind: Literal["cost_aware"] = "cost_aware"
    utility_of: Annotated[Acquisition, OneOf(late=True)] = Random()
    gamma: NonNegativeFloat = Field(1.0, description="γ: utility is divided by cost to this power; 0 ignores cost.")

    @property
    @override
    def needs(self) -> Needs:
        return self.utility_of.needs._replace(cost=True)

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        assert pool.cost is not None  # noqa: S101 - select() has checked it
        ranked = self.utility_of.choose(pool, int((~pool.unavailable).sum()), rng)
        finite = np.isfinite(ranked.utilities)
        least = ranked.utilities[finite].min() if finite.any() else 0.0
        wanted = np.where(ranked.utilities == -np.inf, 0.0, ranked.utilities - least)
        cost = pool.cost[ranked.rows]
        # a free query is worth any other at the lowest price there is
        lowest = cost[cost > 0].min() if (cost > 0).any() else 1.0
        value = wanted / np.maximum(cost, lowest) ** self.gamma
        order: list[int] = []
        money = pool.money
        # of equals the cheaper, unless price is to play no part
        for place in np.lexsort((cost if self.gamma else np.zeros(len(cost)), -value)):
            if len(order) < count and cost[place] <= money:
                order.append(int(place))
                money -= cost[place]
        components = {"utility": ranked.utilities[order], "cost": cost[order]}
        return SelectedRows(ranked.rows[order], value[order], components)
