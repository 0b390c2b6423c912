"""Contract of evaluators (proxy reward models): fit to labels, predict the score of any response."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from models.core.arrays import Float32Array, FloatArray, IntArray
from models.core.data import Response, ScoredExample
from models.core.errors import ConfigError
from models.core.registry import Plugin
from models.core.rubric import Rubric
from models.embeddings.base import View
from models.policies.checkpoint import Checkpoint


@dataclass(frozen=True)
class Examples:
    """Tuples (x, y) to learn from or to score; `features` has shape (N, d) where the evaluator asks for a view.

    `remarks` are the oracle's justifications of their scores, N of them ("" where it gave none), or there are none at all.
    """

    responses: Sequence[Response]
    features: Float32Array | None = None
    remarks: Sequence[str] = ()

    def take(self, rows: IntArray) -> "Examples":
        """Return these rows alone."""
        return Examples(
            [self.responses[row] for row in rows],
            None if self.features is None else self.features[rows],
            [self.remarks[row] for row in rows] if self.remarks else (),
        )

    def joined(self, other: "Examples") -> "Examples":
        """Return these rows and then the other's, to be scored."""
        both = None
        if self.features is not None and other.features is not None:
            both = np.concatenate([self.features, other.features])
        return Examples([*self.responses, *other.responses], both)


@dataclass(frozen=True)
class FitContext:
    """What an evaluator may build on: the policy it starts from, the criterion, its folder and its seed.

    `eft_examples`: off-policy answers with somebody's scores, for an evaluator that `uses_eft_examples`.
    """

    policy: Checkpoint
    rubric: Rubric
    folder: Path
    seed: int
    eft_examples: Sequence[ScoredExample] = ()


class Evaluator(Plugin):
    """A proxy reward model. Concrete evaluators declare `kind` and implement `fit` and `members`."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    feature_view: ClassVar[View | None] = None
    supports_pointwise: ClassVar[bool] = True
    supports_zero_shot: ClassVar[bool] = False
    exports_classifier: ClassVar[bool] = False

    @property
    def supports_pairwise(self) -> bool:
        """Whether it can be trained on comparisons (`fit_pairs`)."""
        return False

    @property
    def uses_eft_examples(self) -> bool:
        """Whether off-policy examples of the prompt source are to be trained too."""
        return False

    def fit(self, tuples: Examples, scores: FloatArray, context: FitContext) -> dict[str, float]:
        """Learn from N oracle scores, save into `context.folder` (safetensors and JSON only), return facts to log."""
        raise NotImplementedError

    def fit_pairs(
        self, first: Examples, second: Examples, preference: FloatArray, context: FitContext
    ) -> dict[str, float]:
        """Learn from N comparisons as `fit` does from scores; only where `learns_pairs`.

        `preference` lies in [−1, 1]: 1 where the oracle prefers the first response, −1 the second, 0 neither.
        """
        raise NotImplementedError

    def init_zero_shot(self, context: FitContext) -> dict[str, float]:
        """Save what judges before any label is bought, as `fit` does; only where `supports_zero_shot`."""
        raise NotImplementedError

    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        """Return the scores of each ensemble member saved in `context.folder`, shape (E, N).

        NaN marks a tuple whose judgement could not be parsed; it is counted and left out, never guessed.
        """
        raise NotImplementedError

    def diagnostics(self, members: FloatArray, tuples: Examples) -> dict[str, float]:
        """Return what the members' scores of these tuples say of the evaluator's habits, by name: facts for reports."""
        del members, tuples
        return {}

    def write_classifier(self, folder: Path, context: FitContext) -> None:
        """Write a sequence classifier that ranks as the mean of the members does; only where `classifies`."""
        raise NotImplementedError

    def temperature(self, context: FitContext) -> float:
        """Return T such that σ((score_i − score_j)/T) is the probability that the oracle prefers i; 1 for logits."""
        del context
        return 1.0


def check_trainable(scores: FloatArray) -> None:
    """Raise ConfigError if nothing can be learned from these labels."""
    if len(scores) < 2:
        raise ConfigError(f"an evaluator needs at least 2 labels, got {len(scores)}: raise labelling.queries")
    if np.ptp(scores) == 0:
        raise ConfigError(
            f"all {len(scores)} labels are {scores[0]:g}: tied scores hold no preference. "
            "Check the oracle, or ask about more diverse tuples"
        )


def check_decided(preference: FloatArray) -> None:
    """Raise ConfigError if nothing can be learned from these comparisons."""
    if not (preference != 0).any():
        raise ConfigError(
            f"none of {len(preference)} comparisons was decided: ties hold no preference. Check the oracle, or ask about "
            "responses that differ more"
        )
