"""Oracle: simulated, a warmth score fitted on human ratings of film reviews.

Ridge regression on word and character TF-IDF plus VADER's compound score, fitted on the oracle split of the movie-review
ratings. It shares no feature with any evaluator and no snippet with prompts, seed or evaluation.
"""

from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from models.core.arrays import FloatArray
from models.core.money import MicroUsd
from models.core.rubric import Rubric
from models.oracles.base import Oracle, Verdict
from models.sources.movie_reviews import ARCHIVE_SHA256, snippets

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_fitting = Lock()


class Gold(Oracle):
    """Score the sentence prompt + response from −4 (scathing) to +4 (enthusiastic), at a nominal price."""

    simulated: ClassVar[bool] = True
    billed_on_failure: ClassVar[bool] = False
    description: ClassVar[str] = "simulated oracle fitted on human ratings"

    kind: Literal["gold"] = "gold"
    micro_usd: MicroUsd = 10_000

    @property
    @override
    def costs_money(self) -> bool:
        return False

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        score = float(predict([f"{prompt} {response}"])[0])
        return Verdict(score=score, raw=f"{score:.4f}", micro_usd=self.micro_usd, tokens=0)

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        return self.micro_usd

    @override
    def identity(self) -> list[Any]:
        return [ARCHIVE_SHA256]  # its answers do not depend on what it is said to cost

    @override
    def check(self) -> None:
        snippets("oracle")


def predict(texts: list[str]) -> FloatArray:
    """Return the oracle's scores of whole sentences, shape (n,), clipped to the scale of the ratings."""
    with _fitting:  # several workers ask at once; the first of them fits
        model = _fitted()
    scores = model.predict(texts)
    return np.clip(np.asarray(scores, dtype=np.float64), -4.0, 4.0)


@lru_cache(maxsize=1)
def _fitted() -> "Pipeline":
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.preprocessing import FunctionTransformer
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    vader = SentimentIntensityAnalyzer()

    def compound(texts: list[str]) -> FloatArray:
        return np.array([[vader.polarity_scores(text)["compound"]] for text in texts])

    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
        FunctionTransformer(compound),
    )
    rated = snippets("oracle")
    model = make_pipeline(features, Ridge(alpha=2.0, solver="sparse_cg", random_state=0))
    return model.fit([s.text for s in rated], [s.rating for s in rated])
