"""What every evaluator (proxy reward model) does: learn from bought labels, then score any tuple."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from models.core.data import Judged, Response
from models.core.registry import Plugin
from models.core.rubric import Rubric
from models.embeddings.base import View
from models.policies.checkpoint import Checkpoint

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tuples:
    """Tuples (x, y) to learn from or to score; `features` has shape (N, d) where the evaluator asks for a view.

    `remarks` are the expert's justifications of their scores, N of them ("" where it gave none), or there are none at all.
    """

    responses: Sequence[Response]
    features: NDArray[np.float32] | None = None
    remarks: Sequence[str] = ()

    def take(self, rows: NDArray[np.int64]) -> "Tuples":
        """Return these rows alone."""
        return Tuples(
            [self.responses[row] for row in rows],
            None if self.features is None else self.features[rows],
            [self.remarks[row] for row in rows] if self.remarks else (),
        )

    def joined(self, other: "Tuples") -> "Tuples":
        """Return these rows and then the other's, to be scored."""
        both = None
        if self.features is not None and other.features is not None:
            both = np.concatenate([self.features, other.features])
        return Tuples([*self.responses, *other.responses], both)


@dataclass(frozen=True)
class Bench:
    """What an evaluator may build on: the policy it starts from, the criterion, its folder and its seed.

    `eft_seed`: off-policy answers with somebody's scores, for an evaluator that `wants_eft_seed`.
    """

    policy: Checkpoint
    rubric: Rubric
    folder: Path
    seed: int
    eft_seed: Sequence[Judged] = ()


class Evaluator(Plugin):
    """A proxy reward model. Concrete evaluators declare `kind` and implement `fit` and `members`."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    feature_view: ClassVar[View | None] = None
    learns_scores: ClassVar[bool] = True
    judges_untaught: ClassVar[bool] = False
    classifies: ClassVar[bool] = False

    @property
    def learns_pairs(self) -> bool:
        """Whether it can be taught by comparisons (`fit_pairs`)."""
        return False

    @property
    def wants_eft_seed(self) -> bool:
        """Whether off-policy examples of the prompt source are to be taught too."""
        return False

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:
        """Learn from N expert scores, save into `bench.folder` (safetensors and JSON only), return facts to log."""
        raise NotImplementedError

    def fit_pairs(self, first: Tuples, second: Tuples, preference: Floats, bench: Bench) -> dict[str, float]:
        """Learn from N comparisons as `fit` does from scores; only where `learns_pairs`.

        `preference` lies in [−1, 1]: 1 where the expert prefers the first response, −1 the second, 0 neither.
        """
        raise NotImplementedError

    def untaught(self, bench: Bench) -> dict[str, float]:
        """Save what judges before any label is bought, as `fit` does; only where `judges_untaught`."""
        raise NotImplementedError

    def members(self, tuples: Tuples, bench: Bench) -> Floats:
        """Return the scores of each ensemble member saved in `bench.folder`, shape (E, N).

        NaN marks a tuple whose judgement could not be parsed; it is counted and left out, never guessed.
        """
        raise NotImplementedError

    def findings(self, members: Floats, tuples: Tuples) -> dict[str, float]:
        """Return what the members' scores of these tuples say of the evaluator's habits, by name: facts for reports."""
        del members, tuples
        return {}

    def write_classifier(self, folder: Path, bench: Bench) -> None:
        """Write a sequence classifier that ranks as the mean of the members does; only where `classifies`."""
        raise NotImplementedError

    def temperature(self, bench: Bench) -> float:
        """Return T such that σ((score_i − score_j)/T) is the probability that the expert prefers i; 1 for logits."""
        del bench
        return 1.0


def check_trainable(scores: Floats) -> None:
    """Raise ValueError if nothing can be learnt from these labels."""
    if len(scores) < 2:
        raise ValueError(f"an evaluator needs at least 2 labels, got {len(scores)}: raise labelling.queries")
    if np.ptp(scores) == 0:
        raise ValueError(
            f"all {len(scores)} labels are {scores[0]:g}: tied scores hold no preference. "
            "Check the oracle, or ask about more diverse tuples"
        )


def check_decided(preference: Floats) -> None:
    """Raise ValueError if nothing can be learnt from these comparisons."""
    if not (preference != 0).any():
        raise ValueError(
            f"none of {len(preference)} comparisons was decided: ties hold no preference. Check the oracle, or ask about "
            "responses that differ more"
        )
