"""The gate in the flow: it stops, leaves out, or sends back to the oracle, and the report says which."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.config.experiment import Experiment
from flows.planning.run import plan
from flows.proxy_reward import proxy_reward
from flows.reporting.storage import report_folder
from flows.tracking.run import RunTracker
from models.core.data import HeldOutPrediction, Selection
from models.metrics.selective import AtChance
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store
from tests.end_to_end.test_judge_run import ninefold
from tests.support.tiny_runs import bought, executed, ref_of, written

pytestmark = pytest.mark.usefixtures("prefect_server", "home")

NOISE = {"kind": "noisy", "inner": {"kind": "gold"}, "label_noise": 1000.0}


def given(tiny: dict[str, Any], *, gate: dict[str, Any] | None = None, **labelling: Any) -> Experiment:
    labelling = {"queries": 40, "max_micro_usd": 400_000, "acquisition": {"kind": "random"}} | labelling
    return Experiment.model_validate({**tiny, "labelling": {**tiny["labelling"], **labelling}, "gate": gate or {}})


def test_an_evaluator_at_chance_stops_the_run_before_it_labels_and_going_on_costs_nothing(
    tiny_settings: dict[str, Any],
) -> None:
    with pytest.raises(
        AtChance, match="The evaluator is no better than chance: on labels left out it agrees"
    ) as stopped:
        proxy_reward(given(tiny_settings, oracle=NOISE))
    assert "gate.on_failure to continue: what has been bought is kept" in str(stopped.value)
    assert bought() == 40
    assert not list(Path(store().root, "scores").glob("*")), "nothing was labelled by it"

    import mlflow

    client = mlflow.MlflowClient(settings().mlflow_uri)
    (failed,) = client.search_runs(["1"])
    assert failed.info.status == "FAILED"
    assert failed.data.tags["ninefold.gate"] == "no better than chance"
    assert 0.2 < failed.data.metrics["gate.agreement"] < 0.8

    report = proxy_reward(given(tiny_settings, oracle=NOISE, gate={"on_failure": "continue"}))
    done = executed(written(report))
    assert {"fine_tune", "generate", "acquire", "fit_evaluator", "cross_fit"} & done.keys() == {
        "generate",
        "fit_evaluator",
    }, "held-out answers, and the control"
    assert done["fit_evaluator"] == 1
    assert report.queries == 40
    assert report.queries_bought == 0
    assert report.gate.verdict == "no better than chance"
    folder = report_folder("tiny")
    assert report.gate.sentence in (folder / "report.md").read_text()
    assert (folder / "gate.png").read_bytes()[:4] == b"\x89PNG"
    assert "gate.png" in (folder / "report.html").read_text()


def test_a_control_is_not_stopped(tiny_settings: dict[str, Any]) -> None:
    report = proxy_reward(given(tiny_settings, oracle=NOISE, shuffle_labels=True))
    assert report.gate.verdict == "no better than chance"


def test_the_gate_measures_with_labels_that_the_fold_has_not_seen(tiny_settings: dict[str, Any]) -> None:
    report = proxy_reward(given(tiny_settings, gate={"on_failure": "continue", "folds": 3}))
    (path,) = Path(store().root, "left_out").glob("*.parquet")
    rows = store().rows(ref_of(path), HeldOutPrediction)
    assert len(rows) == 40
    assert {row.fold for row in rows} == {0, 1, 2}
    assert report.gate.pairs > 0
    assert 0 <= report.gate.agreement.low <= report.gate.agreement.mean <= report.gate.agreement.high


def test_pairs_under_the_threshold_are_left_out_and_counted(tiny_settings: dict[str, Any]) -> None:
    every = proxy_reward(given(tiny_settings, gate={"on_failure": "continue"}))
    sure = proxy_reward(given(tiny_settings, gate={"on_failure": "continue", "min_confidence": 0.6}))
    assert executed(written(sure))["cross_fit"] == executed(written(sure))["fit_evaluator"] == 0, (
        "what was measured stays"
    )
    assert sure.gate.left_out > 0
    assert sure.pairs + sure.gate.left_out == every.pairs
    assert sure.gate.temperature == every.gate.temperature
    assert "gave no pair" in (report_folder("tiny") / "report.md").read_text()


@pytest.mark.parametrize("compares", [False, True], ids=["scores", "comparisons"])
def test_uncertain_pairs_go_back_to_the_oracle_within_the_budget(tiny_settings: dict[str, Any], compares: bool) -> None:
    oracle: dict[str, Any] = {"kind": "gold", "micro_usd": 10_000}
    extra: dict[str, Any] = {}
    if compares:
        extra = {"oracle": {"kind": "pairwise_from_scores", "inner": oracle}, "acquisition": {"kind": "random_pairs"}}
        extra |= {"queries": 36, "max_micro_usd": 1_000_000}
        tiny_settings["evaluation"] = {**tiny_settings["evaluation"], "oracle": oracle}
    gate = {"on_failure": "continue", "min_confidence": 0.95}
    alone = given(tiny_settings, gate=gate, **(extra | {"queries": 30}))
    asking = given(tiny_settings, gate={**gate, "relabel_queries": 6 if compares else 10}, **extra)
    without, report = proxy_reward(alone), proxy_reward(asking)
    assert without.gate.verdict == report.gate.verdict == "better than chance"
    assert report.queries == (36 if compares else 40), "queries about uncertain pairs are of the budget"
    assert report.gate.left_out < without.gate.left_out
    assert report.oracle_pairs > without.oracle_pairs
    made = report.artifacts
    assert len(made["history"]) == 2
    assert len(made["trained_on"]) == 1
    picks = store().rows(Ref.model_validate(made["history"][1]["picks"]), Selection)
    gaps = [json.loads(pick.components)["gap"] for pick in picks]
    assert gaps == sorted(gaps), "the least sure ones first"
    assert all(bool(pick.against) == compares for pick in picks)
    before = bought()
    again = proxy_reward(asking)
    assert executed(written(again)) == Counter()
    assert bought() == before


def test_a_doubt_whose_answer_could_not_be_read_is_not_paid_for_again(tiny_settings: dict[str, Any]) -> None:
    gate = {"on_failure": "continue", "min_confidence": 0.95, "relabel_queries": 30}
    garbled = {"kind": "noisy", "inner": {"kind": "gold"}, "garbage": 0.2}
    report = proxy_reward(given(tiny_settings, oracle=garbled, gate=gate, queries=75, max_micro_usd=1_000_000))
    first, second = (
        {pick.response_id for pick in store().rows(Ref.model_validate(batch["picks"]), Selection)}
        for batch in report.artifacts["history"]
    )
    assert len(first) == 45
    assert first & second == set()


def test_the_queries_kept_are_spread_over_the_rounds(tiny_settings: dict[str, Any]) -> None:
    gate = {"on_failure": "continue", "min_confidence": 0.95, "relabel_queries": 3}
    tiny_settings["iterations"] = 2
    experiment = given(tiny_settings, gate=gate, queries=43, max_micro_usd=1_000_000)
    arm = RunTracker(experiment, "run", [], paid_before=False)
    assert [arm.quota(number) for number in (0, 1)] == [20, 20]
    assert [arm.relabel_quota(number) for number in (1, 2)] == [1, 3], "what the first does not spend is the second's"


def test_doubts_are_not_sent_back_where_the_money_is_gone(tiny_settings: dict[str, Any]) -> None:
    gate = {"on_failure": "continue", "min_confidence": 0.95, "relabel_queries": 10}
    report = proxy_reward(given(tiny_settings, gate=gate, max_micro_usd=300_000))
    assert report.queries == 30
    assert report.micro_usd == 300_000
    assert report.gate.left_out > 0


@pytest.mark.parametrize(
    ("gate", "labelling", "message"),
    [
        ({"relabel_queries": 5}, {}, "none is under 0.5: raise gate.min_confidence"),
        (
            {"relabel_queries": 40, "min_confidence": 0.6},
            {},
            "labelling.queries=40, less 40 kept by gate.relabel_queries, does not reach for 1 rounds",
        ),
        ({"min_confidence": 1.0}, {}, "less than 1"),
        ({"folds": 1}, {}, "greater than or equal to 2"),
    ],
)
def test_a_gate_that_cannot_work_is_refused(
    tiny_settings: dict[str, Any], gate: dict[str, Any], labelling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        given(tiny_settings, gate=gate, **labelling)


def test_a_gate_without_an_evaluator_is_refused(tiny_settings: dict[str, Any]) -> None:
    tiny_settings["feedback"] = "oracle"
    with pytest.raises(ValueError, match="feedback=oracle trains none"):
        given(tiny_settings, gate={"min_confidence": 0.7})


def test_the_plan_says_what_the_gate_will_do(tiny_settings: dict[str, Any]) -> None:
    usual = plan(given(tiny_settings)).lines()
    assert "gate       4 evaluators, each trained without a part of the labels; at chance the run stops" in usual
    asking = plan(
        given(tiny_settings, gate={"min_confidence": 0.7, "relabel_queries": 8, "on_failure": "continue"})
    ).lines()
    line = next(line for line in asking if line.startswith("gate"))
    assert line.endswith(
        "at chance the run goes on; pairs under 0.7 go to the oracle (8 of the queries), then are left out"
    )


def test_the_command_line_says_why_it_stopped(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "noise.yaml"
    path.write_text(given(tiny_settings, oracle=NOISE).model_dump_json())
    # a process of its own: the command sets up Prefect in the environment, for good
    stopped = ninefold("run", str(path), home=tmp_path / "home", key="none")
    assert stopped.returncode == 2
    assert "\nninefold: The evaluator is no better than chance: on labels left out it agrees" in stopped.stderr
