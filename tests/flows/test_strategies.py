"""Strategies that rank by more than vectors, through the whole flow: reference log-probabilities, scores, prices."""

import json
from typing import Any

import pandas as pd
import pytest

from flows.experiment import Experiment
from flows.proxy_reward import proxy_reward
from flows.report import report_folder

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


@pytest.mark.parametrize(
    ("acquisition", "stage", "term"),
    [
        ({"kind": "apl"}, "likelihood", "implicit_margin"),
        ({"kind": "cost_aware", "utility_of": {"kind": "predictive_entropy"}}, "acquire", "cost"),
        (
            {"kind": "hybrid", "uncertainty": {"kind": "bald", "pairs": {"kind": "infomax"}}},
            "proxy_label",
            "uncertainty",
        ),
    ],
)
def test_a_strategy_gets_what_it_ranks_by_and_says_why(
    tiny_settings: dict[str, Any], acquisition: dict[str, Any], stage: str, term: str
) -> None:
    given = {**tiny_settings, "labelling": {**tiny_settings["labelling"], "acquisition": acquisition, "batches": 2}}
    report = proxy_reward(Experiment.model_validate(given))
    assert report["queries"] == 10
    assert stage in {run["name"] for run in report["stages"]}
    picks = pd.read_parquet(report_folder("tiny") / "acquisition.parquet")
    assert picks.turn.tolist() == [0] * 5 + [1] * 5
    assert picks.response_id.is_unique
    assert picks.score.notna().all()
    assert (picks.micro_usd == 10_000).all()
    assert any(term in json.loads(why) for why in picks.why[5:])
