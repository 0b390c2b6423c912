"""The gate: what evaluators say of labels that they have not seen, and what follows from it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from models.core.arrays import FloatArray
from models.core.data import HeldOutPrediction
from models.core.rubric import Rubric
from models.evaluators.base import Evaluator, Examples, FitContext
from models.evaluators.length import Length
from models.evaluators.training_data import FitOptions, PairwiseData, PointwiseData, cross_fit
from models.metrics.agreement import calibration_error, coverage_risk
from models.metrics.calibration import Calibration, cross_calibrated
from models.metrics.intervals import jackknife_mean
from models.metrics.selective import Decision, Gate, decide, evidence_of
from models.policies.checkpoint import Checkpoint
from models.training.preference_pairs import UncertainPair, best_worst

BENCH = FitContext(Checkpoint("nowhere"), Rubric(), Path("nowhere"), 0)


class Recalls(Evaluator):
    """Knows by heart which tuples it was trained, and nothing else; without a kind it is no plugin."""

    def fit(self, tuples: Examples, scores: FloatArray, context: FitContext) -> dict[str, float]:
        (context.folder / "prompts").write_text("\n".join(r.prompt_id for r in tuples.responses))
        return {}

    def fit_pairs(
        self, first: Examples, second: Examples, preference: FloatArray, context: FitContext
    ) -> dict[str, float]:
        return self.fit(first, preference, context)

    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        known = set((context.folder / "prompts").read_text().split("\n"))
        return np.array([[float(r.prompt_id in known) for r in tuples.responses]])


def tuples(make_response: Any, count: int, per_prompt: int = 2) -> Examples:
    return Examples([make_response(n, prompt=f"p{n // per_prompt}", text="word " * (1 + n % 7)) for n in range(count)])


def left_out(count: int, agreement: float, rng: np.random.Generator, per_prompt: int = 2) -> list[HeldOutPrediction]:
    """Return labels whose pairs an evaluator orders alike in about this share."""
    oracle = rng.normal(size=count)
    noise = rng.normal(size=count)
    share = np.sin(np.pi * (agreement - 0.5))  # of a bivariate normal, P(concordant) = ½ + arcsin(ρ)/π
    proxy = share * oracle + np.sqrt(1 - share**2) * noise
    return [
        HeldOutPrediction(str(n), "", f"p{n // per_prompt}", n // per_prompt % 4, float(proxy[n]), float(oracle[n]))
        for n in range(count)
    ]


@pytest.mark.parametrize("folds", [2, 4, 100])
def test_no_label_is_judged_by_an_evaluator_that_was_taught_with_its_prompt(make_response: Any, folds: int) -> None:
    given = tuples(make_response, 30)
    scores = np.arange(30.0)
    found = cross_fit(Recalls(), PointwiseData(given, scores), BENCH, FitOptions(seed=0), folds)
    assert sorted(row.response_id for row in found) == sorted(r.id for r in given.responses), "each is judged once"
    assert {row.proxy for row in found} == {0.0}
    assert {row.response_id: row.oracle for row in found} == {r.id: float(n) for n, r in enumerate(given.responses)}
    fold_of = {row.prompt_id: row.fold for row in found}
    assert all(fold_of[row.prompt_id] == row.fold for row in found), "a prompt's labels stay together"
    sizes = np.bincount(list(fold_of.values()))
    assert sizes.max() - sizes.min() <= 1
    assert len(sizes) == min(folds, 15)


def test_comparisons_are_cut_by_prompt_too(make_response: Any) -> None:
    given = tuples(make_response, 40)
    sides = Examples(given.responses[::2]), Examples(given.responses[1::2])
    preference = np.tile([1.0, -1.0, 0.0, 0.5], 5)
    found = cross_fit(Recalls(), PairwiseData(*sides, preference), BENCH, FitOptions(seed=0), 4)
    assert len(found) == 20
    assert {row.proxy for row in found} == {0.0}
    assert evidence_of(found).within, "a comparison is of one prompt"
    assert len(evidence_of(found).gap) == 15, "the undecided ones say nothing"


def test_a_fold_without_which_nothing_can_be_taught_is_left_out(make_response: Any) -> None:
    given = tuples(make_response, 4)
    scores = np.array([1.0, 1.0, 1.0, 2.0])  # without the second prompt all are tied
    found = cross_fit(Length(), PointwiseData(given, scores), BENCH, FitOptions(seed=0), 2)
    assert {row.prompt_id for row in found} == {given.responses[0].prompt_id}
    nothing = cross_fit(Length(), PointwiseData(Examples([]), np.array([])), BENCH, FitOptions(seed=0), 4)
    assert nothing == []
    assert decide(nothing, Gate()).verdict == "not measured"


def test_shuffling_teaches_wrongly_and_is_measured_against_the_true_labels(make_response: Any) -> None:
    given = tuples(make_response, 210)
    length = np.array([float(len(r.text)) for r in given.responses])
    true, shuffled = (
        cross_fit(Length(), PointwiseData(given, length), BENCH, FitOptions(seed=0, shuffle=shuffle), 4)
        for shuffle in (False, True)
    )
    assert [row.oracle for row in true] == [row.oracle for row in shuffled]
    assert decide(true, Gate()).agreement == 1.0
    assert decide(shuffled, Gate()).agreement < 0.9


def test_pairs_are_of_one_prompt_where_there_are_enough_else_of_one_fold() -> None:
    rng = np.random.default_rng(0)
    many, few = (evidence_of(left_out(count, 0.7, rng)) for count in (100, 98))
    assert many.within
    assert len(many.gap) == 50
    assert not few.within
    in_fold = np.bincount([n // 2 % 4 for n in range(98)])
    assert len(few.gap) == (in_fold * (in_fold - 1) // 2).sum()


def test_ties_of_the_oracle_and_unparsed_judgements_say_nothing() -> None:
    rows = [HeldOutPrediction(str(n), "", f"p{n // 2}", 0, float(n), float(n // 2)) for n in range(120)]
    assert len(evidence_of(rows).gap) == 60 * 59 * 2, "both labels of each prompt are tied"
    rows[0] = HeldOutPrediction("0", "", "p0", 0, float("nan"), 0.0)
    assert len(evidence_of(rows).gap) == 60 * 59 * 2 - 118


def test_chance_passes_seldom_and_a_good_evaluator_passes() -> None:
    rng = np.random.default_rng(1)
    for count in (40, 140):  # across prompts, and within
        chance = [decide(left_out(count, 0.5, rng), Gate()).verdict for _ in range(300)]
        assert chance.count("better than chance") / 300 < 0.06, "one side of 95 %"
        good = [decide(left_out(count, 0.8, rng), Gate()).verdict for _ in range(50)]
        assert good.count("better than chance") > 45


def test_too_few_prompts_are_not_measured_and_say_so() -> None:
    found = decide(left_out(22, 0.9, np.random.default_rng(0)), Gate())
    assert found.verdict == "not measured"
    assert "about 11 prompts are too few" in found.sentence


def test_the_sentence_has_the_figures() -> None:
    found = decide(left_out(200, 0.5, np.random.default_rng(2)), Gate())
    assert found.sentence == (
        f"The evaluator is no better than chance: on labels left out it agrees with the oracle in {found.agreement:.3f} "
        f"[{found.low:.3f}, {found.high:.3f}] of 100 pairs of one prompt each."
    )


def test_the_jackknife_covers_and_counts_a_pair_for_each_prompt_once() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(400):
        found = decide(left_out(48, 0.7, rng, per_prompt=1), Gate())
        covered += found.low <= 0.7 <= found.high
    assert 0.9 < covered / 400 < 0.99
    values, one = np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 2])
    within = jackknife_mean(values, one, one)
    left = np.array([1.0, 2 / 3, 2 / 3])  # without cluster 0, 1, 2
    spread = np.sqrt(2 / 3 * ((left - left.mean()) ** 2).sum())
    assert within.high - within.mean == pytest.approx(4.302653 * spread), "Student's t with 2 degrees of freedom"
    star = jackknife_mean(np.ones(3), np.zeros(3, dtype=np.int64), np.arange(1, 4))
    assert np.isnan(star.low), "one prompt is in every pair: nothing is left without it"


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_calibration_learns_the_probability_of_the_oracles_preference(method: Any) -> None:
    rng = np.random.default_rng(4)
    gap = rng.normal(scale=6.0, size=6000)
    preference = np.where(rng.random(6000) < expit(gap / 3.0), 1.0, -1.0)
    right = (np.sign(gap) == preference).astype(float)
    found = Calibration.fit(method, gap, preference)
    assert found.temperature == pytest.approx(3.0, rel=0.1)
    shown = np.array([0.5, 2.0, 4.0, 8.0])
    assert found.probability(shown) == pytest.approx(expit(shown / 3.0), abs=0.05)
    assert (found.probability(-shown) == found.probability(shown)).all()
    assert calibration_error(expit(np.abs(gap)), right) > 0.1, "as logits they are overconfident"
    fold = np.arange(6000) % 4
    assert calibration_error(cross_calibrated(method, gap, preference, fold), right) < 0.03
    for probability in (0.55, 0.7, 0.9):
        least = found.least_gap(probability)
        assert found.probability(np.array([least]))[0] == pytest.approx(probability)
        assert found.probability(np.array([least - 0.2]))[0] <= probability


def test_an_isotonic_calibration_knows_its_ends() -> None:
    useless = Calibration.fit("isotonic", np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, -1.0, 1.0, -1.0]))
    assert useless.least_gap(0.9) == np.inf
    perfect = Calibration.fit("isotonic", np.array([1.0, 2.0, 3.0, 4.0]), np.ones(4))
    assert perfect.least_gap(0.9) == 0.0
    assert Calibration.fit("isotonic", np.zeros(0), np.zeros(0)) == Calibration()


def test_the_curve_takes_the_surest_first_and_equal_ones_together() -> None:
    confidence = np.array([0.9, 0.6, 0.6, 0.8, 0.7])
    right = np.array([1.0, 0.0, 1.0, 1.0, 0.5])
    curve = coverage_risk(confidence, right)
    assert curve.coverage == pytest.approx([0.2, 0.4, 0.6, 1.0])
    assert curve.risk == pytest.approx([0.0, 0.0, 0.5 / 3, 1.5 / 5])


def test_the_threshold_is_a_least_gap_and_measured_on_pairs_left_out() -> None:
    rows = left_out(2000, 0.75, np.random.default_rng(5))
    everything, sure = decide(rows, Gate()), decide(rows, Gate(min_confidence=0.8))
    assert (everything.least_gap, everything.coverage) == (0.0, 1.0)
    assert sure.least_gap > 0
    assert 0.1 < sure.coverage < 0.9
    assert sure.risk < 0.2 < everything.risk + 0.05, "of pairs that are sure to 80 % fewer than a fifth are wrong"
    curve = np.array(sure.curve)
    assert len(curve) <= 60
    assert curve[-1] == pytest.approx([1.0, 1.0 - sure.agreement])
    assert Decision(verdict="better than chance", threshold=0.9).least_gap == pytest.approx(np.log(9)), "σ⁻¹(0.9)"


def test_an_evaluator_that_is_not_believed_has_no_threshold() -> None:
    """Its probabilities are near one half whatever the pair: nothing would be left, and a run that goes on would fail."""
    rng = np.random.default_rng(6)
    for method in ("temperature", "isotonic"):
        found = decide(left_out(200, 0.5, rng), Gate(min_confidence=0.9, calibration=method))  # type: ignore[arg-type]
        assert found.verdict == "no better than chance"
        assert found.least_gap == 0.0
    assert decide(left_out(10, 0.9, rng), Gate(min_confidence=0.9)).least_gap == 0.0


def test_a_pair_in_doubt_is_the_oracles_or_nobodys(make_response: Any) -> None:
    responses = [make_response(n, prompt=f"p{n // 3}", sample=n % 3) for n in range(12)]
    proxy = {r.id: (0.1, 2.0)[n // 3 % 2] * (n % 3) for n, r in enumerate(responses)}
    ids = [r.id for r in responses]
    made = best_worst(responses, oracle={ids[8]: 1.0, ids[7]: 3.0}, proxy=proxy, least_gap=1.0)
    assert made.uncertain == [UncertainPair(ids[2], ids[0], pytest.approx(0.2))], "p0; of p2 the oracle has scored two"
    assert [(p.provenance, p.chosen) for p in made.pairs] == [
        ("proxy", responses[5].text),
        ("oracle", responses[7].text),
        ("proxy", responses[11].text),
    ]
    level = dict.fromkeys(ids, 1.0)
    equal = best_worst(responses, oracle={ids[8]: 1.0, ids[7]: 3.0}, proxy=level, least_gap=1.0)
    assert ([one.gap for one in equal.uncertain], len(equal.pairs), equal.ties) == ([0.0] * 3, 1, 0), "nothing surer"
    assert best_worst(responses, oracle={}, proxy=level).ties == 4
    tied = best_worst(responses, oracle={ids[8]: 1.0, ids[7]: 1.0}, proxy=proxy, least_gap=1.0)
    assert len(tied.uncertain) == 2, "a tie of the oracle's decides nothing"
