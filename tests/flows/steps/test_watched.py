"""A stage without usable output stops the run before the next expense, is not kept, and can be mended."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from flows.config.experiment import Experiment
from flows.proxy_reward import proxy_reward
from flows.reporting.run_text import headlines
from flows.reporting.schema import RunReport
from models.core.data import Prompt, Response
from models.core.errors import UnusableOutput
from models.generators.hf import Transformers
from models.labelling.label import LabellingStopped
from models.oracles.chat_client import close_clients
from tasks.engine.ledgers import open_ledger
from tests.support.fake_judge import LoopbackJudge
from tests.support.tiny_runs import bought, written

pytestmark = pytest.mark.usefixtures("prefect_server", "home")

PROSE = {"choices": [{"message": {"content": "It deserves a four."}, "finish_reason": "stop"}]}


@pytest.fixture(autouse=True)
def _configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command configures its process for good: its log lines would go to the terminal in all tests that follow."""
    monkeypatch.setattr("flows.runtime.environment.configure_process", lambda: None)


def judged(tiny: dict[str, Any], judge: LoopbackJudge, **labelling: Any) -> Experiment:
    endpoint = {
        "model": "judge",
        "base_url": judge.url,
        "api_key_env": "JUDGE_KEY",
        "prices": {"input": 1_000_000, "output": 2_000_000},
    }
    oracle = {"kind": "llm_judge", "endpoint": endpoint, "attempts": 1}
    given = {
        **tiny,
        "labelling": {**tiny["labelling"], "oracle": oracle, "queries": 40, "max_micro_usd": 900_000, **labelling},
    }
    given["gate"] = {"on_failure": "continue"}  # nobody can learn to count letters modulo 6
    given["evaluation"] = {**tiny["evaluation"], "oracle": {"kind": "gold"}}
    return Experiment.model_validate(given)


def test_a_judge_without_verdicts_stops_the_run_and_its_questions_are_asked_again_once_it_is_mended(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "planted")
    with LoopbackJudge(faults={"odd": 1.0}, says={"odd": (200, PROSE)}) as judge:
        config = judged(tiny_settings, judge, concurrency=1, queries=36)
        with pytest.raises(LabellingStopped, match=r"It deserves a four.*structured_output"):
            proxy_reward(config)
        asked = len(judge.log)
        assert asked == 20
        judge.faults = {}
        with pytest.raises(UnusableOutput, match=r"answers of the oracle hold a verdict.*It deserves a four"):
            proxy_reward(config)
        rest = config.labelling.queries - asked
        assert judge.served["reply"] == rest, "what was not asked is asked; what was, is owned"

        no = CliRunner().invoke(app, ["labels", "retry", config.name], input="n\n")
        assert no.exit_code != 0
        assert f"{asked} questions without a verdict and 0 without a reply are asked again" in no.output
        assert len(judge.log) == config.labelling.queries
        told = CliRunner().invoke(app, ["labels", "retry", config.name, "--yes"])
        assert told.exit_code == 0, told.output
        assert f"{asked} of {asked} now have a verdict, for $" in told.output
        assert f"next: ninefold rerun {config.name}" in told.output

        report = proxy_reward(config)
        assert len(judge.log) == config.labelling.queries + asked
        again = CliRunner().invoke(app, ["labels", "retry", config.name, "--yes"])
        assert "nothing to ask again" in again.output
        assert proxy_reward(config).stages[-1].cached
        close_clients()
    assert report.queries == config.labelling.queries
    assert report.queries_bought == rest
    assert report.quarantined == 0
    assert report.asked_again == 2 * asked
    assert report.asked_again_micro_usd > 0
    assert f"{2 * asked} asked again for $" in dict(headlines(report))["queries"]
    assert report.budget_audit.agree
    paid = sum(row["micro_usd"] for row in open_ledger().rows() if row["oracle"].startswith("llm_judge"))
    assert paid == report.micro_usd_paid + report.asked_again_micro_usd


def test_half_of_the_answers_is_too_few_only_where_more_are_asked_for(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "planted")
    with LoopbackJudge(faults={"out_of_range": 0.3}) as judge:
        with pytest.raises((UnusableOutput, LabellingStopped), match=r"labelling\.least_usable asks for 95%"):
            proxy_reward(judged(tiny_settings, judge, least_usable=0.95))
        report = proxy_reward(judged(tiny_settings, judge, least_usable=0.2))
        close_clients()
    assert report.quarantined > 0
    assert 0.4 < report.oracle_facts["readable"] < 1.0


def test_a_policy_that_writes_nothing_stops_the_run_before_anything_is_bought(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Transformers.sample

    def silent(self: Transformers, policy: Any, prompts: Sequence[Prompt], **given: Any) -> list[Response]:
        made = real(self, policy, prompts, **given)
        return [Response(r.id, r.prompt_id, r.prompt, r.sample, " ", 1, r.logprob) for r in made]

    config = Experiment.model_validate(tiny_settings)
    with monkeypatch.context() as broken:
        broken.setattr(Transformers, "sample", silent)
        with pytest.raises(
            UnusableOutput, match=r"^0 of \d+ responses can be read, and generation\.least_usable asks for 50%"
        ):
            proxy_reward(config)
    assert bought() == 0
    report = proxy_reward(config)
    assert report.queries == config.labelling.queries, "the failure was not kept"
    assert 0 < report.responses["readable"] <= 1
    assert 0 < report.responses["distinct"] <= 1


def test_labels_that_are_all_the_same_stop_the_run(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "planted")
    same = {
        "choices": [{"message": {"content": json.dumps({"justification": "", "score": 3})}, "finish_reason": "stop"}]
    }
    with LoopbackJudge(faults={"same": 1.0}, says={"same": (200, same)}) as judge:
        config = judged(tiny_settings, judge)
        assert config.labelling.queries >= 20
        with pytest.raises(UnusableOutput, match=r"^all \d+ labels are 3: nothing can be learnt from them"):
            proxy_reward(config)
        close_clients()


def test_the_report_says_what_is_odd_about_the_texts(tiny_settings: dict[str, Any]) -> None:
    from flows.reporting.run_text import warnings

    report = written(proxy_reward(Experiment.model_validate(tiny_settings)))
    report["responses"]["finished"] = 0.02
    report["policy"] |= {"readable_before": 0.98, "readable_after": 0.3}
    told = warnings(RunReport.model_validate(report))
    assert any(line.startswith("Only 2% of the responses end where the model ends them") for line in told)
    assert any("M₂ writes text in 30% of its held-out answers, M₁ in 98%" in line for line in told)
    report["policy"] |= {"readable_before": 0.3}
    assert not any("M₂ writes text" in line for line in warnings(RunReport.model_validate(report)))
