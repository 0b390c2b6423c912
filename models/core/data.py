"""Row types that pass between stages: prompts, responses, labels, scores, preference pairs."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from models.core.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Provenance = Literal["oracle", "proxy", "demonstration"]
LabelStatus = Literal["labelled", "quarantined"]
SETTLED = get_args(LabelStatus)


def text_hash(text: str) -> str:
    """Return the 32-digit hexadecimal SHA-256 prefix that identifies a text in ids and in the ledger."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Prompt:
    """An instruction x."""

    id: str
    text: str

    @classmethod
    def of(cls, text: str) -> "Prompt":
        """Make a prompt whose id is the hash of its text, so that the same text is the same prompt anywhere."""
        return cls(id=text_hash(text)[:16], text=text)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A seed example (x, y) for supervised fine-tuning: the paper's IFT seed."""

    prompt: str
    response: str


@dataclass(frozen=True, slots=True)
class ScoredExample:
    """An off-policy answer and somebody's score of it, on a scale of its own: the paper's EFT examples."""

    prompt: str
    response: str
    score: float


@dataclass(frozen=True, slots=True)
class Response:
    """A tuple (x, y): one sampled response y to the prompt x, the unit that a query asks about.

    `logprob` is Σ log π(y_t | x, y_<t) over the `tokens` completion tokens (the end token included), in nats at
    temperature 1; NaN where the back end does not tell. It is `canonical` if the text, encoded again after its prompt, is
    the very tokens that were sampled, so that `logprob` is the text's too. Not every one is (2408.08541); false stands also
    for "not known".
    """

    id: str
    prompt_id: str
    prompt: str
    sample: int
    text: str
    tokens: int
    logprob: float
    canonical: bool = False

    @classmethod
    def recorded(cls, number: str, prompt: str, text: str) -> "Response":
        """Return a tuple of which only the texts are known."""
        return cls(number, "", prompt, 0, text, tokens=0, logprob=float("nan"))


@dataclass(frozen=True, slots=True)
class Selection:
    """A tuple chosen for the oracle, with the utility that chose it (higher is more wanted).

    `components` is a JSON object of what the utility was made of, by name. `against` is the other response of a pair, for
    oracles who compare.
    """

    response_id: str
    utility: float
    components: str = "{}"
    against: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """What the oracle said of a tuple (or of a response `against` another), and what it cost.

    The score of a comparison lies in [−1, 1]: 1 for the response, −1 for the other, 0 for neither.

    `bought` is false when the ledger already held the label, in which case `micro_usd` is its virtual cost: what
    this run would have paid alone. A quarantined label (unparsable, NaN) has a NaN score and is never used. The `remark` is
    the oracle's justification of a score, where it gives one.
    """

    response_id: str
    score: float
    micro_usd: int
    tokens: int
    bought: bool
    status: LabelStatus
    against: str = ""
    remark: str = ""

    @property
    def asked(self) -> tuple[str, ...]:
        """Return the ids of the responses that the query was about."""
        return (self.response_id, self.against) if self.against else (self.response_id,)


def usable_scores(labels: Iterable[Label]) -> dict[str, float]:
    """Return the oracle's score by response id, without the quarantined replies; comparisons score no response."""
    return {label.response_id: label.score for label in labels if label.status == "labelled" and not label.against}


def usable_comparisons(labels: Iterable[Label]) -> dict[tuple[str, str], float]:
    """Return the oracle's preference in [−1, 1] by (response id, other's id), without the quarantined replies."""
    return {
        (label.response_id, label.against): label.score
        for label in labels
        if label.status == "labelled" and label.against
    }


@dataclass(frozen=True, slots=True)
class Score:
    """The evaluator's mean score of a tuple and the standard deviation over its ensemble members."""

    response_id: str
    score: float
    std: float


@dataclass(frozen=True, slots=True)
class HeldOutPrediction:
    """What an evaluator that has not seen a label says of it: `proxy` in logits of preference, beside the `oracle`'s word.

    Of a tuple, whose logits count by their differences; or of a comparison `against` another response, where `proxy` is
    the difference and `oracle` the preference in [−1, 1]. Labels of one `fold` were judged by the same evaluator.
    """

    response_id: str
    against: str
    prompt_id: str
    fold: int
    proxy: float
    oracle: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A preference pair for DPO, with the scores behind it and who gave them; a demonstration has none (NaN)."""

    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    provenance: Provenance

    def swap(self) -> "Pair":
        """Return the pair with the two responses exchanged."""
        return replace(
            self,
            chosen=self.rejected,
            rejected=self.chosen,
            chosen_score=self.rejected_score,
            rejected_score=self.chosen_score,
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """The answers of two policies to the same held-out prompt, with the oracle's score of each.

    `won` is the share of a win that the newer one has: 1, 0, or ½ for a tie; by the scores, or by who has compared the two.
    """

    prompt_id: str
    prompt: str
    before: str
    after: str
    before_score: float
    after_score: float
    won: float


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """What a policy got for a question of a benchmark's task, by one of its metrics."""

    task: str
    question: int
    metric: str
    score: float


Row = TypeVar(
    "Row",
    QuestionResult,
    Prompt,
    Demonstration,
    ScoredExample,
    Response,
    Selection,
    Label,
    Score,
    HeldOutPrediction,
    Pair,
    Comparison,
)


def to_frame(rows: Sequence[Row], cls: type[Row]) -> "pd.DataFrame":
    """Return one column per field; an empty sequence keeps the columns of `cls`."""
    import pandas as pd

    return pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(cls)])


def from_frame(frame: "pd.DataFrame", cls: type[Row]) -> list[Row]:
    """Return the rows of a frame written by `to_frame`; raise ConfigError if its columns are others."""
    names = [field.name for field in fields(cls)]
    if list(frame.columns) != names:
        raise ConfigError(
            f"{cls.__name__} table has columns {list(frame.columns)}, expected {names}: written by another version?"
        )
    return [cls(*values) for values in frame.itertuples(index=False, name=None)]
