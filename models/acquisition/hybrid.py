"""Hybrid: k-center coverage among the responses that an uncertainty strategy ranks highest."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import override

from models.acquisition.base import Acquisition, Needs, Pool, SelectedRows
from models.acquisition.coreset import cover
from models.acquisition.margin import Margin
from models.core.errors import ConfigError
from models.core.registry import OneOf
from models.embeddings.base import View

_VIEW: View = "evaluation"


class Hybrid(Acquisition):
    """Farthest-first over the `keep` share of the pool that `uncertainty` ranks highest (ours)."""

    kind: Literal["hybrid"] = "hybrid"
    uncertainty: Annotated[Acquisition, OneOf(late=True)] = Margin()
    keep: float = Field(0.25, gt=0, le=1, description="Share of the pool that is kept by uncertainty before coverage.")

    @model_validator(mode="after")
    def _one_view(self) -> "Hybrid":
        if self.uncertainty.needs.view not in (None, _VIEW):
            raise ConfigError(
                f"hybrid covers the {_VIEW} view and {self.uncertainty.kind_name()!r} works in the "
                f"{self.uncertainty.needs.view} view: choose another uncertainty"
            )
        return self

    @property
    @override
    def needs(self) -> Needs:
        return self.uncertainty.needs._replace(view=_VIEW)

    @override
    def choose(self, pool: Pool, count: int, rng: np.random.Generator) -> SelectedRows:
        available = int((~pool.unavailable).sum())
        most = min(available, max(count, int(np.ceil(self.keep * available))))
        wanted = self.uncertainty.choose(pool, most, rng)
        count = min(count, len(wanted.rows))  # a strategy that minds money may rank fewer
        outside = np.ones(len(pool.ids), dtype=bool)
        outside[wanted.rows] = False
        found = cover(pool, outside, count, rng)
        rank = np.empty(len(pool.ids))
        rank[wanted.rows] = wanted.utilities
        return SelectedRows(found.rows, found.utilities, {**found.components, "uncertainty": rank[found.rows]})
