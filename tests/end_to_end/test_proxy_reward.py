"""The whole algorithm on a tiny model, through a real Prefect server, a real ledger and a real MLflow."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flows.config.experiment import Experiment
from flows.planning.run import plan
from flows.reporting import run_text
from flows.reporting.run_text import warnings
from flows.reporting.schema import RunReport
from flows.reporting.storage import report_folder
from models.core.data import Label, Pair, Response, Score
from tasks.engine.settings import settings
from tasks.engine.store import store
from tasks.evaluation.biases import assess_biases, reformat
from tasks.evaluator.score import Scored
from tests.support.fake_judge import LoopbackJudge
from tests.support.tiny_runs import bought, executed, ref_of, run

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def test_the_algorithm_runs_end_to_end_and_a_second_run_is_all_cache_hits(
    tiny_settings: dict[str, Any],
) -> None:
    report = run(tiny_settings)
    assert report["queries"] == report["queries_bought"] == 10
    assert report["micro_usd"] == report["micro_usd_paid"] == 100_000
    assert report["evaluation_queries"] == 48
    assert report["proxy_pairs"] + report["oracle_pairs"] + report["tied_prompts"] <= 40
    assert report["proxy_pairs"] > 9
    assert report["pairs_per_query"] == report["proxy_pairs"] / 10
    rate = report["policy"]["win_rate"]
    assert 0 <= rate["low"] <= rate["mean"] <= rate["high"]
    assert math.isfinite(report["policy"]["kl"])
    rate = report["policy"]["lc_win_rate"]
    assert 0 < rate["low"] <= rate["mean"] <= rate["high"] < 1
    assert 0 < report["policy"]["diversity_before"] <= 1
    page = (report_folder("tiny") / "report.md").read_text()
    assert "(length-controlled, 2404.04475); a much longer answer gains" in page
    assert "two answers to a prompt differ in" in page
    assert report["policy"]["kl"] != 0, "DPO moved the policy"
    assert report["oracle_simulated"] is True
    assert sum(report["scores"]["counts"]) == 80, "every response has a score in the histogram"
    assert 1 / 80 <= report["scores"]["top_share"] < 0.5
    assert not any("collapse" in line for line in warnings(RunReport.model_validate(report)))
    one_value = RunReport.model_validate({**report, "scores": {**report["scores"], "top_share": 0.9}})
    assert any("Score collapse: 90%" in line for line in warnings(one_value))
    owned = bought()
    pictures = {file.name: file.stat().st_mtime_ns for file in report_folder("tiny").glob("*.png")}

    again = run(tiny_settings)
    assert executed(again) == Counter()
    assert bought() == owned
    assert {file.name: file.stat().st_mtime_ns for file in report_folder("tiny").glob("*.png")} == pictures, (
        "what shows the same is not drawn again"
    )
    assert again["seconds"] == pytest.approx(report["seconds"], abs=again["seconds_now"])
    took = {stage["name"]: stage["seconds"] for stage in report["stages"] if not stage["cached"]}
    told = {stage["name"]: stage["seconds"] for stage in again["stages"] if stage["name"] in took}
    assert told == pytest.approx(took, abs=0.01)
    for volatile in ("stages", "seconds", "seconds_now"):
        report.pop(volatile)
        again.pop(volatile)
    assert again == report

    folder = report_folder("tiny")
    assert json.loads((folder / "report.json").read_text())["queries"] == 10
    assert "simulated oracle fitted on human ratings — simulated" in (folder / "report.md").read_text()
    assert all((folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG" for name in ("outcome", "agreement", "scores"))
    assert "outcome.png" in (folder / "report.html").read_text()


def test_two_rounds_and_batches_spend_one_budget(tiny_settings: dict[str, Any]) -> None:
    report = run(
        tiny_settings,
        iterations=2,
        labelling__rounds=2,
        labelling__acquisition={"kind": "margin"},
        labelling__queries=11,
        labelling__max_micro_usd=110_000,
    )
    done = executed(report)
    assert (done["align"], done["acquire"], done["annotate"]) == (2, 4, 4 + 2)
    # before turns 2, 3 and 4 (each on its own round's pool), at the end of each round, on the held-out answers (beside the
    # control), and on those written as lists
    assert done["score"] == 3 + 2 + 2 + 1
    assert report["queries"] == 11
    single = run(tiny_settings, labelling__rounds=2, labelling__acquisition={"kind": "margin"})
    assert executed(single)["fine_tune"] == 0


@pytest.mark.parametrize("kind", ["reward_head", "generative"])
def test_language_model_evaluators_run_in_the_same_flow(tiny_settings: dict[str, Any], kind: str) -> None:
    schedule = {"learning_rate": 3e-3, "epochs": 1, "batch_size": 8, "lora": {"r": 4, "alpha": 8}}
    report = run(tiny_settings, evaluator={"kind": kind, "training": schedule})
    assert report["evaluator"]["kind"] == kind
    assert report["proxy_pairs"] > 0


def test_a_judge_that_compares_runs_in_the_same_flow(tiny_settings: dict[str, Any]) -> None:
    schedule = {"learning_rate": 3e-3, "epochs": 1, "batch_size": 8, "max_length": 256, "lora": {"r": 4, "alpha": 8}}
    given = {**tiny_settings, "evaluation": {**tiny_settings["evaluation"], "oracle": {"kind": "gold"}}}
    report = run(
        given,
        evaluator={"kind": "generative_pairs", "training": schedule},
        labelling__oracle={"kind": "pairwise_from_scores", "inner": {"kind": "gold", "micro_usd": 5_000}},
        labelling__acquisition={"kind": "random_pairs"},
    )
    assert report["proxy_pairs"] > 9
    assert math.isfinite(report["evaluator"]["position_bias"])
    page = (report_folder("tiny") / "report.md").read_text()
    assert "place: of two equals the first wins with probability 0." in page
    itself = run(given, evaluator={"kind": "generative_pairs"}, feedback="policy", labelling__queries=0)
    assert itself["proxy_pairs"] > 9
    assert itself["queries"] == 0


def test_the_eft_examples_are_trained_on_beside_the_labels(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    schedule = {"learning_rate": 3e-3, "epochs": 1, "batch_size": 8, "lora": {"r": 4, "alpha": 8}}
    judged = [{"prompt": f"the tale {n} is", "response": "warm" * (n % 3), "score": n % 3} for n in range(12)]
    judged = [row for row in judged if row["response"]]
    (tmp_path / "eft.jsonl").write_text("\n".join(json.dumps(row) for row in judged))
    evaluator = {"kind": "generative", "training": schedule, "eft_examples": "raw"}
    without = run(tiny_settings, evaluator={**evaluator, "eft_examples": "none"})
    report = run(tiny_settings, evaluator=evaluator, prompts__eft_examples=str(tmp_path / "eft.jsonl"))
    done = executed(report)
    assert done["load_prompts"] == 1
    assert done["fit_evaluator"] == 2, "the control is trained the seed too, with its scores permuted"
    assert done["annotate"] == done["fine_tune"] == 0, "nothing else depends on it"
    assert report["queries"] == without["queries"]
    again = run(
        tiny_settings,
        evaluator={**evaluator, "eft_examples": "none"},
        prompts__eft_examples=str(tmp_path / "eft.jsonl"),
    )
    assert executed(again)["fit_evaluator"] == 0, "a seed that is not wanted changes nothing"


def test_what_the_evaluator_leans_on_is_measured_and_said(tiny_settings: dict[str, Any]) -> None:
    report = run(tiny_settings)
    evaluator = report["evaluator"]
    longer, shift = evaluator["longer_preferred"], evaluator["format_shift"]
    assert 0 <= longer["low"] <= longer["mean"] <= longer["high"]
    assert 0 <= evaluator["longer_preferred_by_oracle"]["mean"] <= 1
    assert shift["low"] <= shift["mean"] <= shift["high"]
    assert evaluator["position_bias"] is None, "it compares nothing"
    page = (report_folder("tiny") / "report.md").read_text()
    assert "length: the longer response wins in" in page
    assert "format: as a list the same text scores" in page

    def shifted(mean: float) -> RunReport:
        """Return the report as that of one prompt, without an interval."""
        shift = {"mean": mean, "low": None, "high": None}
        return RunReport.model_validate({**report, "evaluator": {**evaluator, "format_shift": shift}})

    assert "scores +0.30 standard deviations" in run_text.page(shifted(0.3), []).markdown()
    said = warnings(shifted(-1.2))
    assert any("leans on format: written as a list, the same text scores -1.20" in line for line in said)


def test_the_way_to_the_policy_and_the_best_of_several_are_measured_on_request(tiny_settings: dict[str, Any]) -> None:
    plain = run(tiny_settings)
    assert plain["curve"] == []
    assert plain["best_of"] is None
    report = run(
        tiny_settings,
        evaluation__intermediate_checkpoints=2,
        evaluation__best_of=3,
        evaluation__max_micro_usd=2_000_000,
    )
    assert report["evaluation_queries"] == 48 + 2 * 24 + 12
    assert [point["share"] for point in report["curve"]] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    first, last = report["curve"][0], report["curve"][-1]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert last["kl"] == pytest.approx(report["policy"]["kl"], rel=1e-4)
    assert last["oracle_mean"] == pytest.approx(report["policy"]["oracle_mean_after"])
    assert len({point["proxy_mean"] for point in report["curve"]}) == 4
    folder = report_folder("tiny")
    assert (folder / "optimisation.png").read_bytes()[:4] == b"\x89PNG"
    best = report["best_of"]
    assert 0 <= best["win_rate"]["low"] <= best["win_rate"]["mean"] <= best["win_rate"]["high"] <= 1
    assert best["kl"] == pytest.approx(math.log(3) - 2 / 3)
    assert (
        "of M₁'s best by the evaluator against M₁, at a KL of at most 0.43 nats" in (folder / "report.md").read_text()
    )
    assert (
        executed(
            run(
                tiny_settings,
                evaluation__intermediate_checkpoints=2,
                evaluation__best_of=3,
                evaluation__max_micro_usd=2_000_000,
            )
        )
        == Counter()
    )
    few = {**tiny_settings["evaluation"], "max_micro_usd": 700_000, "intermediate_checkpoints": 2}
    with pytest.raises(ValueError, match=r"the evaluation asks 96 queries, \$0.96"):
        plan(Experiment.model_validate({**tiny_settings, "evaluation": few}))


def test_a_pairwise_oracle_decides_who_wins(tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    by_score = run(tiny_settings)
    compared = run(
        tiny_settings, evaluation__pairwise_judge={"kind": "pairwise_from_scores", "inner": {"kind": "gold"}}
    )
    for name in ("win_rate", "lc_win_rate", "tie_rate", "oracle_gain"):
        assert compared["policy"][name] == by_score["policy"][name], "one oracle, asked in two ways"
    assert 48 < compared["evaluation_queries"] <= 48 + 24
    assert compared["pairwise_judge"]["simulated"] is True

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with LoopbackJudge() as server:
        endpoint = {"model": "judge", "base_url": server.url, "prices": {"input": 1, "output": 1}}
        judged = run(tiny_settings, evaluation__pairwise_judge={"kind": "llm_pairwise_judge", "endpoint": endpoint})
    assert 0 <= judged["policy"]["win_rate"]["mean"] <= 1
    assert judged["pairwise_judge"] == {
        "oracle": "a language model comparing two responses in both orders",
        "simulated": False,
        "order_consistency": 1.0,
        "undecided": 0,
    }
    page = (report_folder("tiny") / "report.md").read_text()
    assert "by a language model comparing two responses in both orders; both orders agree in 100%" in page
    with pytest.raises(
        ValueError, match="evaluation.pairwise_judge compares two answers, and 'gold' scores single ones"
    ):
        run(tiny_settings, evaluation__pairwise_judge={"kind": "gold"})


def test_what_cannot_be_measured_is_no_reason_to_fail(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    """One held-out prompt: no interval; answers of one word: no word pairs; an arm without evaluator: no curve."""
    Path(tiny_settings["prompts"]["held_out"]).write_text("the fine tale is\n")
    report = run(
        tiny_settings, evaluation__intermediate_checkpoints=1, evaluation__best_of=2, generation__max_new_tokens=1
    )
    assert report["policy"]["lc_win_rate"]["low"] is None
    assert report["best_of"]["win_rate"]["low"] is None
    assert (report_folder("tiny") / "report.md").exists()
    direct = tiny_settings | {"feedback": "oracle"}
    direct["labelling"] = direct["labelling"] | {"acquisition": {"kind": "random_pairs"}}
    planned = plan(
        Experiment.model_validate(
            direct | {"evaluation": {**direct["evaluation"], "intermediate_checkpoints": 3, "best_of": 4}}
        )
    )
    assert planned.evaluation_queries == 4


def test_answers_that_are_lists_already_say_nothing_of_format(tiny_settings: dict[str, Any]) -> None:
    prompts = Path(tiny_settings["prompts"]["held_out"]).read_text().split("\n")
    responses = [Response(str(n), str(n), line, 0, f"- {line}", 4, -1.0) for n, line in enumerate(prompts)]
    ref = store().write_rows("responses", responses, Response)
    assert reformat(ref).ref.rows == 0
    labels = store().write_rows("labels", [Label(r.id, 1.0, 0, 0, True, "labelled") for r in responses], Label)
    scores = store().write_rows("scores", [Score(r.id, 1.0, 0.0) for r in responses], Score)
    facts = assess_biases(ref, labels, Scored(ref=scores, members=scores), None)
    assert math.isnan(facts["format_shift_mean"])


@pytest.mark.parametrize("algorithm", ["kto", "orpo"])
def test_variants_of_dpo_run_in_the_same_flow(tiny_settings: dict[str, Any], algorithm: str) -> None:
    report = run(tiny_settings, dpo__algorithm=algorithm, evaluation__intermediate_checkpoints=1)
    assert "reference" not in executed(report), "their trainers know their own, or have none"
    assert report["policy"]["kl"] != 0
    assert len(report["curve"]) == 3


def test_mlflow_holds_one_run_per_arm_with_everything_on_it(tiny_settings: dict[str, Any]) -> None:
    import mlflow

    first = run(tiny_settings)
    assert run(tiny_settings)["mlflow_run"] == first["mlflow_run"], "the same arm is the same run"
    other = run(tiny_settings, dpo__beta=0.5)
    assert other["mlflow_run"] != first["mlflow_run"]

    client = mlflow.MlflowClient(settings().mlflow_uri)
    found = client.get_run(first["mlflow_run"])
    assert found.info.status == "FINISHED"
    assert found.data.params["strategy"] == "coreset_eft"
    assert len(found.data.params) <= 10
    metrics = found.data.metrics
    for name in (
        "queries",
        "micro_usd",
        "evaluator.pair_accuracy",
        "policy.win_rate",
        "policy.kl",
        "cached.align",
    ):
        assert name in metrics
    assert metrics["queries"] == 10
    assert metrics["cached.align"] == 1.0, "the second run was served from the cache, and says so"
    assert found.data.tags["ninefold.simulated"] == "true"
    names = {item.path for item in client.list_artifacts(first["mlflow_run"])}
    assert {"experiment.json", "comparisons.json", "report", "models"} <= names
    digests = {entry.dataset.name for entry in found.inputs.dataset_inputs}
    assert {"pool", "labels-0", "pairs"} <= digests
    for part in ("evaluator", "policy"):
        version = client.get_model_version_by_alias(f"ninefold-tiny-{part}", "newest")
        assert version.run_id in {first["mlflow_run"], other["mlflow_run"]}
    shown = [r.info.run_id for r in client.search_runs(["1"])]
    assert sorted(shown) == sorted({first["mlflow_run"], other["mlflow_run"]})


def test_every_pair_says_who_labelled_it(tiny_settings: dict[str, Any]) -> None:
    report = run(tiny_settings, labelling__queries=78, labelling__max_micro_usd=10_000_000)
    pairs = [
        pair for path in Path(store().root, "pairs").glob("*.parquet") for pair in store().rows(ref_of(path), Pair)
    ]
    counted = Counter(p.provenance for p in pairs)
    assert counted == {"oracle": report["oracle_pairs"], "proxy": report["proxy_pairs"]}
    assert counted["oracle"] > 30
    assert all(p.chosen_score > p.rejected_score for p in pairs)


def test_over_long_prompts_are_reported_not_dropped_in_silence(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    pool = Path(tiny_settings["prompts"]["pool"])
    pool.write_text(pool.read_text() + "film " * 60 + "\n")
    seed = Path(tiny_settings["prompts"]["demonstrations"])
    seed.write_text(seed.read_text() + json.dumps({"prompt": "the tale is", "response": "film " * 80}) + "\n")
    report = run(tiny_settings)
    assert report["too_long"] == {"fine_tune": 1}
    page = (report_folder("tiny") / "report.md").read_text()
    assert "1 rows were too long for fine_tune and left out of it (named in its log): raise its max_length." in page
    assert len(report["prompts_over_long"]) == 1
    assert "(60 tokens): film film" in report["prompts_over_long"][0]
    assert "1 prompts were too long and set aside." in page
