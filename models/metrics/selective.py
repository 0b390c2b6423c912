"""Selective prediction: the gate that checks an evaluator on held-out labels, coverage and risk.

Query or pseudo-label (ADPO, 2402.09401): what the evaluator is sure of is labelled by it, what it is not goes to the oracle
while there is money, or is left out.
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt

from models.core.arrays import FloatArray, IntArray
from models.core.data import HeldOutPrediction
from models.core.errors import ConfigError
from models.core.registry import Frozen
from models.core.usable import least_usable
from models.metrics.agreement import agrees, calibration_error, coverage_risk, group_ids, untied_pairs
from models.metrics.calibration import Calibration, Method, cross_calibrated
from models.metrics.intervals import jackknife_mean

GateVerdict = Literal["better than chance", "no better than chance", "not measured"]

ANY_PAIR = 0.5  # the least probability that a pair can have: this threshold leaves out none
_LEAST_PROMPTS = 12  # below, an interval over prompts means nothing
_ENOUGH_PAIRS = 50  # of one prompt each; with fewer, any two labels are compared
_MOST_COMPARED = 400  # labels of a fold that are compared with one another: 80,000 pairs
_CURVE_POINTS = 60


class Gate(Frozen):
    """What an evaluator must show before its labels are used, and how sure it must be of each pair.

    It is held against labels bought already: the prompts are cut into `folds`, and each fold is judged by an evaluator that
    was trained on the others.
    """

    execution_fields: ClassVar[frozenset[str]] = frozenset({"least_usable"})

    folds: int = Field(
        4, ge=2, description="Parts that the bought labels are cut into; one more evaluator is trained for each."
    )
    on_failure: Literal["stop", "continue"] = Field(
        "stop",
        description="What happens if the evaluator is no better than chance: the run stops, or goes on with all pairs.",
    )
    calibration: Method = Field("temperature", description="How differences of scores become probabilities.")
    min_confidence: float = Field(
        ANY_PAIR,
        ge=ANY_PAIR,
        lt=1.0,
        description="Least probability of a pair that the evaluator may label; 0.5 leaves out none.",
    )
    relabel_queries: NonNegativeInt = Field(
        0, description="Queries of labelling.queries that are kept for pairs under min_confidence."
    )
    least_usable: float = least_usable("the responses that the evaluator gives a score")


class Evidence(NamedTuple):
    """Pairs of labels left out, P of them: proxy difference, oracle's preference, prompts of both sides, fold."""

    gap: FloatArray
    preference: FloatArray
    one: IntArray
    other: IntArray
    fold: IntArray

    @property
    def within(self) -> bool:
        """Whether both sides are of one prompt, as in the pairs that DPO learns from."""
        return bool((self.one == self.other).all())


class Decision(Frozen):
    """What the gate has measured, over `pairs` pairs of `prompts` prompts, and what follows from it.

    `coverage` and `risk`: the share of pairs that reach the threshold, and of these the share that is wrong; `curve`: the
    same for other thresholds, surest pairs first. NaN where nothing could be measured.
    """

    verdict: GateVerdict
    agreement: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: int = 0
    prompts: int = 0
    within_prompt: bool = False
    calibration_error: float = math.nan
    calibration: Calibration = Calibration()
    threshold: float = ANY_PAIR
    coverage: float = math.nan
    risk: float = math.nan
    curve: tuple[tuple[float, float], ...] = ()

    @property
    def least_gap(self) -> float:
        """Return the difference of scores, in logits, from which a pair is the evaluator's to label.

        None is asked for of an evaluator that is not better than chance: its probabilities say nothing of a pair.
        """
        sure = self.verdict == "better than chance" and self.threshold > ANY_PAIR
        return self.calibration.least_gap(self.threshold) if sure else 0.0

    @property
    def pairs_of(self) -> str:
        """Return what was compared, for people."""
        return "of one prompt each" if self.within_prompt else "across prompts"

    @property
    def sentence(self) -> str:
        """Return the verdict in a sentence, for people."""
        if self.verdict == "not measured":
            return (
                f"The evaluator was not measured before it labelled: {self.pairs} pairs of labels about {self.prompts} "
                "prompts are too few."
            )
        return (
            f"The evaluator is {self.verdict}: on labels left out it agrees with the oracle in {self.agreement:.3f} "
            f"[{self.low:.3f}, {self.high:.3f}] of {self.pairs} pairs {self.pairs_of}."
        )


class AtChance(ConfigError):
    """The gate has stopped a run."""


def decide(rows: Sequence[HeldOutPrediction], gate: Gate) -> Decision:
    """Return what labels left out say of the evaluator.

    Better than chance is one whose 95 % interval of the agreement lies above one half.
    """
    evidence = evidence_of(rows)
    gap, preference = evidence.gap, evidence.preference
    prompts = len(np.unique(np.concatenate([evidence.one, evidence.other])))
    if prompts < _LEAST_PROMPTS:
        return Decision(verdict="not measured", pairs=len(gap), prompts=prompts, threshold=gate.min_confidence)
    right = agrees(gap, preference)
    found = jackknife_mean(right, evidence.one, evidence.other)
    confidence = cross_calibrated(gate.calibration, gap, preference, evidence.fold)
    kept, curve = confidence >= gate.min_confidence, coverage_risk(confidence, right)
    shown = np.unique(np.linspace(0, len(curve.risk) - 1, _CURVE_POINTS).round().astype(int))
    return Decision(
        verdict="better than chance" if found.low > 0.5 else "no better than chance",
        agreement=found.mean,
        low=found.low,
        high=found.high,
        pairs=len(gap),
        prompts=prompts,
        within_prompt=evidence.within,
        calibration_error=calibration_error(confidence, right),
        calibration=Calibration.fit(gate.calibration, gap, preference),
        threshold=gate.min_confidence,
        coverage=float(kept.mean()),
        risk=float(1.0 - right[kept].mean()) if kept.any() else math.nan,
        curve=tuple(zip(curve.coverage[shown].tolist(), curve.risk[shown].tolist(), strict=True)),
    )


def evidence_of(rows: Sequence[HeldOutPrediction]) -> Evidence:
    """Return the pairs that the evaluator can be held against, undecided ones and unparsed judgements left out.

    Comparisons are pairs. Of scored tuples, those of one prompt; where they are fewer than fifty, any two of one fold, which
    also asks which prompt is answered better.
    """
    rows = [row for row in rows if math.isfinite(row.proxy)]
    prompt = group_ids([row.prompt_id for row in rows])
    fold = np.array([row.fold for row in rows], dtype=np.int64)
    proxy, oracle = (np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in ("proxy", "oracle"))
    if any(row.against for row in rows):
        decided = oracle != 0
        return Evidence(*(column[decided] for column in (proxy, oracle, prompt, prompt, fold)))
    for groups in (prompt, fold):
        first, second = untied_pairs(oracle, _thinned(groups))
        if len(first) >= _ENOUGH_PAIRS:
            break
    return Evidence(
        proxy[first] - proxy[second],
        np.sign(oracle[first] - oracle[second]),
        prompt[first],
        prompt[second],
        fold[first],
    )


def _thinned(group: IntArray) -> IntArray:
    """Return the groups, where what is over the number that is compared stands alone, in a group of its own."""
    rank = np.empty(len(group), dtype=np.int64)
    order = np.argsort(group, kind="stable")
    _, begins, counts = np.unique(group[order], return_index=True, return_counts=True)
    rank[order] = np.arange(len(group)) - np.repeat(begins, counts)
    over = rank >= _MOST_COMPARED
    return np.where(over, group.max(initial=0) + 1 + np.arange(len(group)), group)
