"""Strategies that rank by more than vectors, through the whole flow: reference log-probabilities, scores, prices."""

import json
from typing import Any

import pandas as pd
import pytest

from flows.config.experiment import Experiment
from flows.planning.run import plan
from flows.proxy_reward import proxy_reward
from flows.reporting.storage import report_folder
from models.ledger.ledger import Ledger
from models.oracles import gold
from tasks.engine.settings import settings

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


@pytest.mark.parametrize(
    ("acquisition", "stage", "term"),
    [
        ({"kind": "apl"}, "likelihood", "implicit_margin"),
        ({"kind": "cost_aware", "utility_of": {"kind": "predictive_entropy"}}, "acquire", "cost"),
        (
            {"kind": "hybrid", "uncertainty": {"kind": "bald", "pairs": {"kind": "infomax"}}},
            "score",
            "uncertainty",
        ),
    ],
)
def test_a_strategy_gets_what_it_ranks_by_and_says_why(
    tiny_settings: dict[str, Any], acquisition: dict[str, Any], stage: str, term: str
) -> None:
    given = {**tiny_settings, "labelling": {**tiny_settings["labelling"], "acquisition": acquisition, "rounds": 2}}
    report = proxy_reward(Experiment.model_validate(given))
    assert report.queries == 10
    names = [run.name for run in report.stages]
    assert stage in names[: len(names) - names[::-1].index("acquire")], "before the last choice"
    picks = pd.read_parquet(report_folder("tiny") / "acquisition.parquet")
    assert picks.round_number.tolist() == [0] * 5 + [1] * 5
    assert picks.response_id.is_unique
    assert picks.score.notna().all()
    assert (picks.micro_usd == 10_000).all()
    assert any(term in json.loads(each) for each in picks.components[5:])


def test_a_pairwise_oracle_trains_the_same_flow(tiny_settings: dict[str, Any]) -> None:
    """A strategy that queries the oracle directly: pairs are asked, learned from, and become pairs of DPO."""
    labelling = {
        **tiny_settings["labelling"],
        "oracle": {"kind": "pairwise_from_scores", "inner": {"kind": "gold", "micro_usd": 5_000}},
        "acquisition": {"kind": "bald", "pairs": {"kind": "dts"}},
        "rounds": 2,
    }
    evaluation = {**tiny_settings["evaluation"], "oracle": {"kind": "gold", "micro_usd": 5_000}}
    given = {**tiny_settings, "labelling": labelling, "evaluation": evaluation}
    report = proxy_reward(Experiment.model_validate(given))
    assert report.queries == report.queries_bought == 10
    assert report.micro_usd == 10 * 10_000, "a comparison is two scores"
    assert report.evaluation_micro_usd == report.evaluation_queries * 5_000
    picks = pd.read_parquet(report_folder("tiny") / "acquisition.parquet")
    asked = [*picks.response_id, *picks.against]
    assert len(set(asked)) == 20
    assert set(picks.score) <= {-1.0, 0.0, 1.0}
    assert (picks.text != picks.against_text).all()
    assert report.oracle_pairs == (picks.score != 0).sum()
    for row in picks.itertuples():
        scores = gold.predict([f"{row.prompt} {text}" for text in (row.text, row.against_text)])
        assert row.score == (scores[0] > scores[1]) * 1.0 - (scores[0] < scores[1])
    page = (report_folder("tiny") / "report.md").read_text()
    assert "10 comparisons for $0.10" in page
    assert "comparisons derived from another oracle's scores — simulated" in page

    shuffled = {**given, "labelling": {**labelling, "shuffle_labels": True, "acquisition": {"kind": "random_pairs"}}}
    again = proxy_reward(Experiment.model_validate(shuffled))
    assert again.queries == 10
    assert again.oracle_pairs == 0, "a control of shuffled labels trains on no pair of the oracle's"
    owned = [row for row in Ledger(settings().ledger_url).rows() if row["oracle"].startswith("pairwise_from_scores")]
    assert len(owned) == 10 + again.queries_bought < 20, "pairs asked about before are not bought again"


def test_what_a_pairwise_oracle_cannot_do_is_said_at_once(tiny_settings: dict[str, Any]) -> None:
    def refused(**labelling: Any) -> str:
        given = {**tiny_settings, "labelling": {**tiny_settings["labelling"], **labelling}}
        given["evaluation"] = {**given["evaluation"], **evaluation}
        given["evaluator"] = evaluator
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is what is tested
            plan(Experiment.model_validate(given))
        return str(error.value)

    compares = {"oracle": {"kind": "pairwise_from_scores", "inner": {"kind": "gold"}}}
    evaluation: dict[str, Any] = {}
    evaluator: dict[str, Any] = {"kind": "linear"}
    assert "'pairwise_from_scores' compares: set evaluation.oracle" in refused(**compares)
    evaluation = {"oracle": {"kind": "gold"}}
    assert "'coreset_eft' picks tuples: use a strategy over pairs" in refused(**compares)
    pairs = {**compares, "acquisition": {"kind": "random_pairs"}}
    assert "= 40 disjoint pairs: lower labelling.queries" in refused(**pairs, queries=41, max_micro_usd=10**7)
    evaluator = {"kind": "generative"}
    assert "'generative' learns from scores: use linear, generative_pairs, or reward_head" in refused(**pairs)
    evaluator = {"kind": "generative_pairs"}
    assert "'gold' scores single answers, and evaluator 'generative_pairs' learns from comparisons" in refused()
    evaluator = {"kind": "generative", "eft_examples": "raw"}
    assert (
        "evaluator.eft_examples=raw mixes in examples that prompts 'files' do not have: set prompts.eft_examples"
        in refused()
    )
