"""The small values: preferences, pairs, rubric, money, metrics, intervals, random streams."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.core.data import Label, Pair, Prompt, Response, from_frame, to_frame
from models.core.money import dollars
from models.core.randomness import seed_of, stream
from models.core.rubric import Rubric, parse_score
from models.metrics.agreement import agreement, concentration, win_rate
from models.metrics.intervals import Interval, averaged, clustered_mean, weighted_mean
from models.training.preference_pairs import best_worst


def test_a_pair_swapped_twice_is_itself() -> None:
    pair = Pair("p", "x", "good", "bad", 2.0, 1.0, "oracle")
    assert pair.swap().chosen == "bad"
    assert pair.swap().chosen_score == 1.0
    assert pair.swap().swap() == pair


def test_rows_survive_the_round_trip_through_a_table() -> None:
    labels = [Label("r1", 0.5, 10, 3, True, "labelled"), Label("r2", 1.5, 10, 3, False, "labelled")]
    assert from_frame(to_frame(labels, Label), Label) == labels
    assert from_frame(to_frame([], Label), Label) == []
    with pytest.raises(ValueError, match="written by another version"):
        from_frame(to_frame([Prompt.of("x")], Prompt), Label)


@pytest.mark.parametrize(
    ("micro", "text"),
    [(0, "$0.00"), (10_000, "$0.01"), (1_500_000, "$1.50"), (4_800, "$0.0048"), (1, "$0.000001")],
)
def test_money_is_written_exactly(micro: int, text: str) -> None:
    assert dollars(micro) == text


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Relevant.\nScore: 4", 4),
        ("score: 0", 0),
        ("SCORE: 5/5", 5),
        ("Score: 3.", 3),
        ("By the rule.\n**Score: 4**", 4),
        ("**Score:** 4", 4),
        ("Score: **4**", 4),
        ("### Score: 4", 4),
        ("> Score: `4`", None),
        ("Score: 4" + " " * 5000 + "x", None),
        ("\n" * 5000 + "Score: 4", 4),
        ("*" * 5000 + "Score: 4", 4),
        ("Score:\n1.\n- relevant", None),
        ("# Score\n: 3", None),
        ("Score: **4** / 5.\r\n", 4),
        ("Score: <4>", 4),
        ("Score: [[4]]", 4),
        ("Score: 4.0", 4),
        ("Score: 4/5.", 4),
        ("Score: 4 out of 5", 4),
        ("Score = 4", 4),
        ("Score: 4.5", None),
        ("Score: 4/10", None),
        ("Score: 3-4", None),
        ("Score: -4", None),
        ("The score: 4", None),
        ("Score: 4\nScore: 4", 4),
        ("Score: 4\nScore: 2", None),
        ("Score: 6", None),
        ("Score: 45", None),
        ("Score: four", None),
        ("I would give it a 4", None),
        ("", None),
    ],
)
def test_a_judgement_is_parsed_strictly_or_not_at_all(text: str, score: int | None) -> None:
    assert parse_score(text) == score


@given(level=st.integers(0, 5), words=st.text(alphabet="abc ,.", max_size=40))
def test_an_answer_is_parsed_back(level: int, words: str) -> None:
    assert parse_score(Rubric().answer(level, words)) == level


def pool(make_response: Any) -> list[Any]:
    return [make_response(n, prompt=f"p{n // 2}", sample=n % 2) for n in range(8)]


def test_pairs_never_compare_two_scales(make_response: Any) -> None:
    responses = pool(make_response)
    proxy = {r.id: float(n) for n, r in enumerate(responses)}
    oracle = {"r0000": 9.0, "r0001": -9.0, "r0002": 100.0}
    made = best_worst(responses, oracle=oracle, proxy=proxy)
    assert [p.provenance for p in made.pairs] == ["oracle", "proxy", "proxy", "proxy"]
    assert made.pairs[0].chosen == responses[0].text, "the oracle scored both: its order counts"
    assert made.pairs[1].chosen == responses[3].text, "the oracle scored one: the proxy's order counts"
    assert made.pairs[1].chosen_score == 3.0


def test_ties_and_prompts_without_two_scores_are_dropped_and_counted(make_response: Any) -> None:
    responses = pool(make_response)
    proxy = {"r0000": 1.0, "r0001": 1.0, "r0002": 2.0, "r0004": 0.0, "r0005": 5.0}
    made = best_worst(responses, oracle={}, proxy=proxy)
    assert (len(made.pairs), made.ties, made.incomplete) == (1, 1, 2)


def test_equal_texts_are_no_pair(make_response: Any) -> None:
    twins = [make_response(n, text="same", sample=n) for n in range(2)]
    assert best_worst(twins, oracle={}, proxy={"r0000": 1.0, "r0001": 2.0}).ties == 1


def test_agreement_is_counted_within_prompts() -> None:
    prompt = np.array([0, 0, 1, 1, 2, 2])
    oracle = np.array([1.0, 2.0, 30.0, 20.0, 5.0, 5.0])
    proxy = np.array([10.0, 20.0, 1.0, 0.0, 1.0, 2.0])
    found = agreement(oracle, proxy, prompt)
    assert (found.pair_accuracy, found.pairs, found.tuples) == (1.0, 2, 6)
    assert agreement(oracle, -proxy, prompt).pair_accuracy == 0.0
    assert agreement(oracle, np.zeros(6), prompt).pair_accuracy == 0.5


def test_a_collapse_of_scores_is_seen() -> None:
    prompt = np.repeat(np.arange(3), 2)
    assert concentration(np.array([4.0, 4.0, 4.0, 1.0, 4.0, 4.0]), prompt) == (5 / 6, 2 / 3)
    assert concentration(np.arange(6.0), prompt) == (1 / 6, 0.0)
    assert concentration(np.array([0.1 + 0.2, 0.3]), np.zeros(2, dtype=np.int64)) == (1.0, 1.0), (
        "equal but for rounding"
    )
    assert np.isnan(concentration(np.zeros(0), np.zeros(0, dtype=np.int64)).top_share)


def test_calibration_error_is_small_for_logits_and_large_for_overconfidence() -> None:
    from scipy.special import expit

    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(4000), 2)
    proxy = rng.normal(size=8000)
    wins = rng.random(4000) < expit(proxy[::2] - proxy[1::2])
    oracle = np.zeros(8000)
    oracle[::2] = wins
    oracle[1::2] = ~wins
    assert agreement(oracle, proxy, prompt).calibration_error < 0.03
    assert agreement(oracle, 10 * proxy, prompt).calibration_error > 0.15


def test_a_win_rate_counts_ties_half() -> None:
    assert win_rate(np.array([1.0, 0.0, 5.0]), np.array([1.0, 1.0, 1.0])).tolist() == [0.5, 0.0, 1.0]


def test_an_interval_of_clusters_is_wider_than_one_that_ignores_them() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(20), 10)
    values = rng.normal(size=20)[cluster]
    clustered = clustered_mean(values, cluster)
    naive = clustered_mean(values, np.arange(200))
    assert clustered.low < values.mean() < clustered.high
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_interval_covers_the_truth_about_as_often_as_it_says(share: float) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        wins = (rng.random(96) < share).astype(float)
        found = clustered_mean(wins, np.arange(96), seed=trial)
        covered += found.low <= share <= found.high
    assert covered >= 86


def test_streams_differ_by_seed_round_and_stage_and_repeat_otherwise() -> None:
    draws = {stream(s, r, n).integers(2**62) for s in (0, 1) for r in (0, 1) for n in ("acquire", "generate")}
    assert len(draws) == 8
    assert stream(0, 1, "acquire").integers(2**62) == stream(0, 1, "acquire").integers(2**62)
    assert 0 <= seed_of(0, 1, "align") < 2**31


def test_decided_comparisons_of_the_oracle_are_a_prompts_pairs() -> None:
    responses = [Response(f"r{n}", f"p{n // 4}", f"x{n // 4}", n % 4, f"text {n}", 2, -1.0) for n in range(8)]
    proxy = {r.id: float(n) for n, r in enumerate(responses)}
    compared = {("r0", "r1"): -1.0, ("r2", "r3"): 0.5, ("r4", "r5"): 0.0, ("r8", "r9"): 1.0}
    made = best_worst(responses, oracle={}, proxy=proxy, compared=compared).pairs
    assert [(p.chosen, p.rejected, p.provenance) for p in made] == [
        ("text 1", "text 0", "oracle"),
        ("text 2", "text 3", "oracle"),
        ("text 7", "text 4", "proxy"),
    ]
    assert [p.chosen_score - p.rejected_score for p in made[:2]] == [2.0, 1.0]


def test_estimates_of_one_family_are_not_taken_for_independent() -> None:
    part = Interval(0.1, 0.06, 0.14)
    apart, together = averaged([part, part], ["a", "b"]), averaged([part, part], ["a", "a"])
    assert apart.mean == together.mean == pytest.approx(0.1)
    assert apart.high - apart.mean == pytest.approx(0.04 / 2**0.5)
    assert together == pytest.approx(part)


def test_a_weighted_mean_stays_within_its_values() -> None:
    weights = np.array([3.0] * 5 + [0.2] * 45)
    assert weighted_mean(np.ones(50), weights) == pytest.approx((1, 1, 1))
    found = weighted_mean(np.array([1.0] * 5 + [0.0] * 45), weights)
    assert found.mean == pytest.approx(15 / 24)
    assert 0 <= found.low < found.mean < found.high <= 1
