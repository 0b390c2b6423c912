"""Contract of oracles: a verdict about a response or a pair, its cost, and its failures."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal, NamedTuple

from typing_extensions import override

from models.core.errors import NinefoldError
from models.core.money import Amount, MicroUsd
from models.core.registry import Plugin, digest_of
from models.core.rubric import Rubric


class Verdict(NamedTuple):
    """An oracle's reply. `score` is in the oracle's own unit; NaN or ±inf is quarantined with `raw`."""

    score: float
    raw: str
    micro_usd: int
    tokens: int = 0


class UnusableReply(NamedTuple):
    """What an oracle has said that holds no verdict, and which field of it may help; "" where that is not known."""

    text: str
    remedy: str


class CostEstimate(NamedTuple):
    """What one query usually costs: micro-dollars, tokens (0 where they are not counted), seconds (0 if in this process)."""

    micro_usd: MicroUsd
    tokens: int = 0
    seconds: float = 0.0

    def times(self, number: int) -> "CostEstimate":
        """Return the same of a query that is asked so many times."""
        return CostEstimate(number * self.micro_usd, number * self.tokens, number * self.seconds)

    def plus(self, other: "CostEstimate") -> "CostEstimate":
        """Return both in turn."""
        return CostEstimate(self.micro_usd + other.micro_usd, self.tokens + other.tokens, self.seconds + other.seconds)


class AnnotationTask(NamedTuple):
    """What people are told, how many are asked about each item, and what each judgement costs, in micro-dollars."""

    guide: str
    judgements: int
    micro_usd: MicroUsd


_REFUSED = "refused"

TokenCounter = Callable[[str], int]  # of the tokens of a text


def approximate_tokens(text: str) -> int:
    """Return about how many tokens English text makes, where no tokenizer is at hand."""
    return -(-len(text.encode()) // 4)


class RetryableError(NinefoldError):
    """The call failed and certainly cost nothing (refused connection, rate limit): the reservation is undone.

    It is tried again after `retry_after` seconds, or after a pause that grows where the server says nothing.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimited(RetryableError):
    """The server takes no more for now (a rate limit, overload): nothing was billed, and fewer are asked at once."""


class RequestRejected(RetryableError):
    """Nothing was billed, and trying again is no use (a wrong key, an unknown model): labelling stops.

    `param` and `words` are what the server says of the field that it refuses.
    """

    def __init__(self, message: str, *, param: str = "", words: str = "") -> None:
        super().__init__(message)
        self.param, self.words = param, words


class QuestionRejected(RetryableError):
    """Nothing was billed, and this question will not be answered (a content filter, too long); others may be.

    `signature` is what refusals for the same reason have in common. `certain` where the server says that it is this
    question; else it may be every question.
    """

    def __init__(self, message: str, *, signature: str, certain: bool) -> None:
        super().__init__(message)
        self.signature = signature
        self.certain = certain

    @property
    def raw(self) -> str:
        """The record of a question that was refused, as the raw text of its quarantined label."""
        return json.dumps({_REFUSED: str(self)}, ensure_ascii=False)


def refused(raw: str) -> bool:
    """Whether the raw text of a label records that its question was refused."""
    with suppress(ValueError, RecursionError):
        record = json.loads(raw)
        return isinstance(record, dict) and record.keys() == {_REFUSED}
    return False


class MaybeBilledError(NinefoldError):
    """The call may have been paid for and its reply never came, or cannot be read: it counts as paid.

    At `most`; at the query's ceiling where that is not known. The question is asked again, as another query, while the
    budget allows.
    """

    def __init__(self, message: str, *, most: Amount | None = None) -> None:
        super().__init__(message)
        self.most = most


class Oracle(Plugin):
    """An oracle. Concrete oracles declare `kind` and implement `judge`.

    `simulated` oracles say so in every report. `billed_on_failure` is false for oracles that run in this process and
    bill nothing for an answer that was never delivered.
    """

    simulated: ClassVar[bool] = False
    billed_on_failure: ClassVar[bool] = True
    description: ClassVar[str]

    @property
    def costs_money(self) -> bool:
        """Whether an answer is paid for now; false where its price is only counted: a simulation, a record."""
        return True

    @property
    def uses_device(self) -> bool:
        """Whether it answers by a model in this process, on its GPU where there is one."""
        return False

    @property
    def query_type(self) -> Literal["pointwise", "pairwise"]:
        """What one query is about."""
        return "pointwise"

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        """Return the score of one tuple. Raise RetryableError if the call failed without being billed."""
        raise NotImplementedError

    async def judge_async(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        """Return what `judge` does. The desk awaits many at once; oracles behind a server need no thread for it."""
        return await asyncio.to_thread(self.judge, prompt, response, rubric)

    def annotation_task(self, rubric: Rubric) -> AnnotationTask | None:
        """Return on what terms this oracle is asked through a queue; None for one who answers when called."""
        del rubric
        return None

    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        """Return the most that one query may cost, in micro-dollars."""
        raise NotImplementedError

    def max_query_tokens(self, prompt: str, response: str) -> int:
        """Return the most tokens that one query may be billed for; 0 for oracles that are not paid by the token."""
        del prompt, response
        return 0

    def estimate(self, prompt: str, response: str, count: TokenCounter) -> CostEstimate:
        """Return what one query usually costs, its tokens counted by `count`; its ceiling where prices are fixed."""
        del count
        return CostEstimate(self.max_cost(prompt, response))

    def rate_limit_seconds(self, queries: int, tokens: int) -> float:
        """Return the seconds that rate limits make of so many queries and of their `most_tokens`; 0 without limits."""
        del queries, tokens
        return 0.0

    def diagnostics(self, replies: Sequence[str]) -> dict[str, float]:
        """Return what the raw texts of many verdicts say of this oracle, by name: facts for people, in reports."""
        del replies
        return {}

    def unusable_reply(self, raw: str) -> "UnusableReply":
        """Return what was said, of a verdict's raw text that holds no score, and which field may help."""
        return UnusableReply(raw, "")

    def rationale(self, raw: str) -> str:
        """Return the justification that the raw text of a verdict holds, without the score; "" if there is none."""
        del raw
        return ""

    def fingerprint(self) -> str:
        """Return the identity under which labels are owned: same fingerprint, same answer to the same question."""
        return f"{self.kind_name()}-{digest_of([self.version, *self.identity()])}"

    def identity(self) -> list[Any]:
        """Return what the answer depends on; the default is every field."""
        return [self.model_dump(mode="json")]

    def check(self) -> None:
        """Raise ConfigError or FileNotFoundError, before anything is bought, if this oracle cannot answer."""


class PairOracle(Oracle):
    """An oracle that says which of two responses is better. Concrete ones implement `compare` and `pair_ceiling`.

    To the ledger a pair is one question whose response is its `canonical_pair`, so that asking it the other way round is
    asking it again. Whoever imports labels of such an oracle gives the score of the first text of the two.
    """

    @property
    @override
    def query_type(self) -> Literal["pointwise", "pairwise"]:
        return "pairwise"

    def compare(self, prompt: str, first: str, second: str, rubric: Rubric) -> Verdict:
        """Return a score in [−1, 1]: 1 if the first is better, −1 if the second is, 0 if neither."""
        raise NotImplementedError

    def pair_ceiling(self, prompt: str, first: str, second: str) -> MicroUsd:
        """Return the most that one comparison may cost, in micro-dollars."""
        raise NotImplementedError

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        first, second = json.loads(response)
        return self.compare(prompt, first, second, rubric)

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        first, second = json.loads(response)
        return self.pair_ceiling(prompt, first, second)


def canonical_pair(first: str, second: str) -> tuple[str, int]:
    """Return a pair as one text, the same whichever comes first, and the sign of its score as seen from `first`."""
    return json.dumps(sorted([first, second]), ensure_ascii=False), 1 if first <= second else -1
