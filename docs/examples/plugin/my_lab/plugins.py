"""An acquisition strategy and an oracle for Ninefold. Importing this module registers both."""

from typing import ClassVar, Literal

import numpy as np

from ninefold.plugins import Acquisition, FloatArray, MicroUsd, Needs, Oracle, Pool, Rubric, Verdict


class Longest(Acquisition):
    """Query the longest responses."""

    version: ClassVar[int] = 1  # raise it when the strategy selects something else than before

    kind: Literal["my_lab/longest"] = "my_lab/longest"

    @property
    def needs(self) -> Needs:
        """Say that the numbers of tokens are needed."""
        return Needs(logprob=True)

    def utility(self, pool: Pool, rng: np.random.Generator) -> FloatArray:
        """Return each response's number of tokens, shape (N,)."""
        return pool.tokens.astype(float)


class Brief(Oracle):
    """A simulated oracle that prefers short responses."""

    simulated: ClassVar[bool] = True
    billed_on_failure: ClassVar[bool] = False
    description: ClassVar[str] = "simulated oracle that prefers short responses"
    version: ClassVar[int] = 1  # part of a label's identity: raise it, and labels are bought again

    kind: Literal["my_lab/brief"] = "my_lab/brief"

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        """Return minus the number of characters; it costs nothing."""
        return Verdict(score=-float(len(response)), raw=str(len(response)), micro_usd=0)

    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        """Return the most that a query may cost, in micro-dollars."""
        return 0
