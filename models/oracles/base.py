"""What every expert answers: a score for one tuple (x, y), and what the answer cost."""

from typing import Any, ClassVar, NamedTuple

from models.cost import MicroUsd
from models.plugins import Plugin, digest_of
from models.rubric import Rubric


class Verdict(NamedTuple):
    """An expert's reply. `score` is in the oracle's own unit; NaN or ±inf is quarantined with `raw`."""

    score: float
    raw: str
    micro_usd: int
    tokens: int = 0


class UnpaidFailure(Exception):
    """The call failed and certainly cost nothing (refused connection, rate limit): the reservation is undone."""


class Oracle(Plugin):
    """An expert. Concrete experts declare `kind` and implement `judge`.

    `simulated` experts say so in every report. `paid_on_loss` is false for experts that run in this process and
    bill nothing for an answer that was never delivered.
    """

    simulated: ClassVar[bool] = False
    paid_on_loss: ClassVar[bool] = True
    recipe_version: ClassVar[int] = 1
    description: ClassVar[str]

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        """Return the score of one tuple. Raise UnpaidFailure if the call failed without being billed."""
        raise NotImplementedError

    def ceiling(self, prompt: str, response: str) -> MicroUsd:
        """Return the most that one query may cost, in micro-dollars."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return the identity under which labels are owned: same fingerprint, same answer to the same question."""
        return f"{self.label()}-{digest_of([self.recipe_version, *self.identity()])}"

    def identity(self) -> list[Any]:
        """Return what the answer depends on; the default is every field."""
        return [self.model_dump(mode="json")]

    def check(self) -> None:
        """Raise ValueError or FileNotFoundError, before anything is bought, if this expert cannot answer."""
