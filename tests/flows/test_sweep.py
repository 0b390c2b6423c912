"""A sweep shares what its arms have in common, is refused over its budget, and survives an arm that fails."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa
import yaml

from flows.config.loading import load
from flows.config.presets import PRESETS
from flows.config.sweep import Sweep, expand
from flows.planning.purses import sweep_purse
from flows.reporting.storage import report_folder
from flows.reporting.sweep_text import notes, page, rows_of
from flows.sweep import Incomplete, run_sweep
from flows.sweep_plan import plan_sweep
from flows.tracking.lookup import find_run
from models.ledger.ledger import Ledger
from tasks.engine.settings import settings
from tests.flows.cli.test_main import ninefold
from tests.support.fake_judge import LoopbackJudge

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sweep_settings(tiny_file: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "base": str(tiny_file),
        "presets": ["random", "coreset_eft"],
        "seeds": [0, 1],
        "max_micro_usd": 100_000_000,
    }


@pytest.fixture
def sweep_file(tmp_path: Path, sweep_settings: dict[str, Any]) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(sweep_settings))
    return path


def sweep(given: dict[str, Any], **changes: Any) -> Sweep:
    return Sweep.model_validate(given | changes)


def test_arms_go_on_at_chance_unless_the_base_says_otherwise(tiny_file: Path, sweep_settings: dict[str, Any]) -> None:
    arms = expand(sweep(sweep_settings, presets=["random", "sft", "self_reward"])).arms
    assert {arm.experiment.gate.on_failure for arm in arms} == {"continue"}
    mapping = expand(sweep(sweep_settings, presets=[], arms={"sure": {"gate": {"min_confidence": 0.7}}})).arms
    assert [(a.experiment.gate.on_failure, a.experiment.gate.min_confidence) for a in mapping] == [
        ("continue", 0.7)
    ] * 2
    base = yaml.safe_load(tiny_file.read_text())
    base["gate"] = {"on_failure": "stop", "folds": 3, "min_confidence": 0.7, "relabel_queries": 2}
    tiny_file.write_text(yaml.safe_dump(base))
    arms = expand(sweep(sweep_settings)).arms
    assert {(arm.experiment.gate.on_failure, arm.experiment.gate.folds) for arm in arms} == {("stop", 3)}
    assert len(expand(sweep(sweep_settings, presets=list(PRESETS))).arms) == 2 * len(PRESETS), (
        "a gate suits every preset"
    )


def test_arms_are_crossed_with_the_grid_and_the_seeds_but_for_what_is_excluded(sweep_settings: dict[str, Any]) -> None:
    found = expand(
        sweep(
            sweep_settings,
            arms={"soft": {"dpo.beta": 0.5}},
            grid={"labelling.queries": [5, 10]},
            exclude=[{"arm": "soft", "labelling.queries": 5}, {"arm": "random", "seed": 1}],
        )
    )
    names = [arm.experiment.name for arm in found.arms]
    assert names == [
        "small.random.queries-5.s0",
        "small.random.queries-10.s0",
        "small.coreset-eft.queries-5.s0",
        "small.coreset-eft.queries-5.s1",
        "small.coreset-eft.queries-10.s0",
        "small.coreset-eft.queries-10.s1",
        "small.soft.queries-10.s0",
        "small.soft.queries-10.s1",
    ]
    assert found.merged == {}
    one = found.arms[3].experiment
    assert (one.labelling.queries, one.seeds.selection, one.seeds.training) == (5, 1, 1)


def test_what_an_arm_sets_itself_does_not_vary_with_the_grid(sweep_settings: dict[str, Any]) -> None:
    found = expand(sweep(sweep_settings, presets=["sft", "random"], grid={"labelling.queries": [5, 10]}, seeds=[0]))
    names = [arm.experiment.name for arm in found.arms]
    assert names == ["small.sft.s0", "small.random.queries-5.s0", "small.random.queries-10.s0"]
    assert found.merged == {}
    assert found.arms[0].point == {}


def test_the_same_experiment_under_two_names_is_one_arm(sweep_settings: dict[str, Any]) -> None:
    same = {"again": {"labelling.acquisition": {"kind": "random"}}}
    found = expand(sweep(sweep_settings, arms=same))
    assert len(found.arms) == 4
    assert found.merged == {"small.again.s0": "small.random.s0", "small.again.s1": "small.random.s1"}
    assert "small.again.s0 is the same experiment as small.random.s0: merged" in "\n".join(
        plan_sweep(sweep(sweep_settings, arms=same)).lines()
    )


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"presets": ["randon"]}, r"presets \['randon'\] are none of sft, random"),
        ({"presets": []}, "names no arm"),
        ({"arms": {"random": {}}}, r"\['random'\] are presets and arms"),
        ({"arms": {"odd": {"labelling.querys": 3}}}, "arm odd: labelling.querys: .*did you mean 'labelling.queries'"),
        ({"arms": {"odd": {"labelling.queries": -1}}}, "arm odd: labelling.queries: .*got -1"),
        ({"arms": {"odd": {"labelling.queries": 0}}}, "arm odd: .*labelling.queries=0 does not reach for 1 rounds"),
        (
            {"arms": {"odd": {"feedback": "none"}}},
            "arm odd: .*feedback=none asks the oracle nothing, .*set it to 0",
        ),
        ({"arms": {"odd": {"name.x": 0}}}, "arm odd: 'name.x': 'name' has no fields of its own"),
        ({"arms": {"greedy": {"labelling.queries": 81}}}, "arm greedy: labelling.queries=81 passes the pool"),
        (
            {"exclude": [{"arm": "random", "dpo.beta": 1}]},
            r"exclude names \['dpo.beta'\]: it may name arm, seed, training_seed",
        ),
        ({"exclude": [{"seed": 0}, {"seed": 1}]}, "has no arm left"),
        (
            {"max_micro_usd": 1_000_000},
            r"4 purchases, \$0.40 at most, and 6 evaluations of a policy's answers, \$1.44 at most, come to \$1.84",
        ),
    ],
)
def test_what_is_wrong_is_named_before_anything_runs(
    sweep_settings: dict[str, Any], changes: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        plan_sweep(sweep(sweep_settings, **changes))
    assert not settings().home.joinpath("ledger.sqlite").exists()


def test_the_plan_counts_what_is_shared(sweep_settings: dict[str, Any]) -> None:
    control = {"shuffled": {"labelling.acquisition": {"kind": "random"}, "labelling.shuffle_labels": True}}
    planned = plan_sweep(sweep(sweep_settings, arms=control))
    assert len(planned.expanded.arms) == 6
    distinct = {stage: found.distinct for stage, found in planned.stages.items()}
    assert (distinct["load_prompts"], distinct["fine_tune"]) == (1, 2)
    assert distinct["generate"] == 2 + 2 + 6, "the pool and M_1's answers of each seed, and M_2's of each arm"
    assert distinct["acquire"] == 4, "a control asks what its arm asks"
    assert distinct["annotate"] == 4 + 2 + 6
    assert distinct["align"] == 6
    # the pool in the views of coreset_ift and of the evaluator, held-out answers and their variants in the latter alone
    assert distinct["embed"] == 2 * (2 + 2)
    assert planned.queries == 4 * 10
    assert planned.micro_usd == 4 * 100_000 + (2 + 6) * 240_000
    assert planned.alone_micro_usd == 6 * 580_000
    assert planned.seconds < planned.alone_seconds


def test_the_paper_s_arms_are_presets(home: Path, prefect_server: None, sweep_settings: dict[str, Any]) -> None:
    given = sweep(sweep_settings, presets=list(PRESETS), seeds=[0])
    report = run_sweep(given)
    planned = {stage: found.distinct for stage, found in plan_sweep(given).stages.items()}
    executed = report["executed"]
    assert planned.keys() == executed.keys(), "the plan is the algorithm, run dry"
    chance = {stage for stage, count in planned.items() if count != executed[stage]}
    # other pairs' scores, the same texts: two arms' M_2 may come out the same to the byte
    assert chance <= {"generate", "likelihood", "assess_policy"}
    assert all(planned[stage] - executed[stage] in range(1, 4) for stage in chance)
    assert [arm["failure"] for arm in report["arms"]] == [None] * len(PRESETS)
    found = {arm["arm"]: arm["report"] for arm in report["arms"]}
    queries = {name: arm["queries"] for name, arm in found.items()}
    assert queries == dict.fromkeys(PRESETS, 10) | {"sft": 0, "spin": 0, "self_reward": 0, "oracle_all": 80}
    pairs = {name: (arm["proxy_pairs"], arm["oracle_pairs"], arm["pairs"]) for name, arm in found.items()}
    assert pairs["sft"] == (0, 0, 0)
    assert pairs["direct"] == (0, pairs["direct"][1], pairs["direct"][1]), "no proxy"
    assert 0 < pairs["direct"][1] <= 5, "ten single answers hold five pairs at most"
    assert pairs["spin"][:2] == (0, 0)
    assert pairs["spin"][2] == 40, "one per demonstration"
    assert pairs["self_reward"][1] == 0 < pairs["self_reward"][0]
    assert pairs["oracle_all"][0] == 0 < pairs["oracle_all"][1]
    policy = {name: arm["policy"] for name, arm in found.items()}
    assert [policy["sft"][name]["mean"] for name in ("win_rate", "oracle_gain")] == [0.5, 0.0]
    assert policy["sft"]["kl"] == 0
    assert all(policy[name]["kl"] != 0 for name in PRESETS if name != "sft")
    trained_on = {name for name, arm in found.items() if arm["evaluator"] is not None}
    assert trained_on == set(PRESETS) - {"sft", "direct", "spin", "oracle_all"}
    assert found["self_reward"]["evaluator"]["shuffled_pair_accuracy"]["mean"] is None, "there are no labels to shuffle"
    seed = {name: picks(found[name]) for name in ("off_policy", "balanced_off_policy")}
    assert seed["off_policy"] == seed["balanced_off_policy"], "balanced after they were bought"
    assert all(response_id.startswith("seed-") for response_id in seed["off_policy"])
    assert found["off_policy"]["evaluator"] != found["balanced_off_policy"]["evaluator"]
    rows = {row["arm"]: row for row in rows_of(report)}
    assert rows["sft"]["pair accuracy"] is None


def picks(report: dict[str, Any]) -> list[str]:
    return list(pd.read_parquet(report_folder(report["name"]) / "acquisition.parquet").response_id)


def test_seeds_of_selection_and_of_training_can_be_crossed(sweep_settings: dict[str, Any]) -> None:
    found = expand(
        sweep(sweep_settings, presets=["random"], training_seeds=[7, 8], exclude=[{"training_seed": 8, "seed": 1}])
    )
    assert [arm.experiment.name for arm in found.arms] == [
        "small.random.s0t7",
        "small.random.s0t8",
        "small.random.s1t7",
    ]
    assert [(a.experiment.seeds.selection, a.experiment.seeds.training) for a in found.arms] == [(0, 7), (0, 8), (1, 7)]


def test_the_shipped_sweep_is_valid() -> None:
    planned = plan_sweep(load(Sweep, ROOT / "deployments" / "sweeps" / "quickstart.yaml"))
    arms = {arm.arm for arm in planned.expanded.arms}
    assert arms == set(PRESETS) - {"entropy", "kto", "orpo"}
    assert planned.stages["fine_tune"].distinct == 3


def test_the_paper_s_own_sweep_is_a_valid_file() -> None:
    arms = expand(load(Sweep, ROOT / "deployments" / "sweeps" / "paper.yaml")).arms
    assert {arm.arm for arm in arms} == set(PRESETS) - {"entropy", "oracle_all", "kto", "orpo"}
    assert {arm.experiment.policy.model for arm in arms} == {"meta-llama/Llama-2-7b-hf"}
    assert {arm.experiment.labelling.queries for arm in arms} == {0, 1700}


def test_a_sweep_runs_each_shared_stage_once_and_an_arm_that_fails_leaves_the_others_whole(
    home: Path, prefect_server: None, sweep_settings: dict[str, Any]
) -> None:
    broken = {"broken": {"labelling.oracle": {"kind": "noisy", "inner": {"kind": "gold"}, "garbage": 1.0}}}
    given = sweep(sweep_settings, arms=broken, seeds=[0])
    with pytest.raises(Incomplete, match=r"Missing: small.broken.s0. The same command runs what is missing") as missing:
        run_sweep(given)
    report = missing.value.report
    assert report["executed"]["fine_tune"] == 1
    assert report["executed"]["generate"] == 4, "the pool and M_1's answers once, and M_2's of each arm that got so far"
    assert report["executed"]["annotate"] == 5, "each arm's picks and M_2's answers, and M_1's answers once"
    assert [bool(arm["failure"]) for arm in report["arms"]] == [False, False, True]
    assert "UnusableOutput: 0 of 10 answers" in report["arms"][2]["failure"]
    assert "Missing: small.broken.s0" in notes(report)[0]
    rows = rows_of(report)
    assert [row["state"] for row in rows[:2]] == ["done", "done"]
    assert rows[2]["win rate"] is None
    paid = sum(row["micro_usd"] for row in Ledger(settings().ledger_url).rows() if row["account"] in _accounts(report))
    assert report["micro_usd_paid"] == paid <= report["micro_usd"]
    folder = report_folder("small")
    assert json.loads((folder / "sweep.json").read_text())["name"] == "small"
    assert "| random | 0 | 10 | $0.10 |" in page(report).markdown()
    assert (folder / "sweep.csv").read_text().startswith("arm,seed,queries,dollars")

    with pytest.raises(Incomplete) as missing:
        run_sweep(given)
    again = missing.value.report
    assert [bool(arm["report"]) for arm in again["arms"]] == [True, True, False]
    assert again["executed"] == {}, "what was done is not done again"
    assert again["micro_usd_paid"] == report["micro_usd_paid"]


def _accounts(report: dict[str, Any]) -> set[str]:
    return {account for arm in report["arms"] if arm["report"] for account in arm["report"]["accounts"]}


def test_the_plan_is_shown_and_nothing_is_written(tmp_path: Path, sweep_file: Path) -> None:
    shown = ninefold("sweep", str(sweep_file), "--plan", home=tmp_path / "h")
    assert "sweep      small: 4 arms" in shown
    assert "queries    at most 40 after sharing" in shown
    assert not (tmp_path / "h").exists()


def test_replies_longer_than_expected_do_not_pass_the_budget_of_the_sweep(
    home: Path,
    prefect_server: None,
    tiny_file: Path,
    sweep_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "loopback")
    base = yaml.safe_load(tiny_file.read_text())
    with LoopbackJudge(completion_tokens=500) as server:
        prices = {"input": 1_000_000, "output": 2_000_000}
        endpoint = {"model": "judge", "base_url": server.url, "prices": prices}
        base["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": endpoint}, "max_micro_usd": 10_000_000}
        base["evaluation"]["max_micro_usd"] = 10_000_000
        tiny_file.write_text(yaml.safe_dump(base))
        large = sweep(sweep_settings, seeds=[0])
        cap = plan_sweep(large).micro_usd
        tight = sweep(sweep_settings, seeds=[0], max_micro_usd=cap)
        with pytest.raises(Incomplete) as missing:
            run_sweep(tight)
        failures = [arm["failure"] for arm in missing.value.report["arms"] if arm["failure"]]
        purse = sweep_purse(tight).name
        assert failures
        assert all(f"the purse {purse!r} has paid" in failure for failure in failures)
        assert all("raise max_micro_usd of the sweep" in failure for failure in failures)
        ledger = Ledger(settings().ledger_url)
        assert 0 < sum(row["micro_usd"] for row in ledger.rows()) <= cap
        assert {json.loads(row["purses"])[-1] for row in ledger.rows()} == {purse}
        report = run_sweep(large)
    assert [arm["failure"] for arm in report["arms"]] == [None, None]
    assert sweep_purse(large).name == purse
    with ledger.reader.connect() as connection:
        paid = dict(connection.execute(sa.text("SELECT name, micro_usd FROM accounts")).tuples().all())
    assert cap < paid[purse] == sum(row["micro_usd"] for row in ledger.rows()) == report["micro_usd_paid"]
    assert sum(micro_usd for name, micro_usd in paid.items() if name.startswith("run ")) == paid[purse]
    assert find_run("small.random.s0").purse == sweep_purse(large)
