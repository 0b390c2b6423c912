"""Bad input is refused before any query is bought and any file is written, with the value, the rule and the remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.experiment import Experiment
from flows.config.loading import load
from flows.config.study import LabelEfficiency
from flows.planning.run import plan
from models.ledger.entries import Reservation
from models.ledger.ledger import Ledger
from models.ledger.tables import Question
from tasks.engine.settings import settings

ROOT = Path(__file__).parents[3]


def refused(file: Path, *overrides: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        plan(load(Experiment, file, list(overrides)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labelling.acquisition.kind=coreset_efd", "'coreset_eft'"),
        ("labelling.oracle.kind=golden", "does not match any of the expected tags"),
        ("labelling.querys=3", "did you mean 'labelling.queries'?"),
        ("polcy.model=x", "did you mean 'policy'?"),
        ("evaluator.ensembl=3", "did you mean 'evaluator.linear.ensemble'?"),
        (
            "labelling.workers=3",
            "labelling.workers: Extra inputs are not permitted (it is called 'labelling.concurrency' now)",
        ),
        ("dpo.gate.threshold=0.7", "(it is called 'gate' now)"),
        ("prompts.seed=x.jsonl", "(it is called 'prompts.demonstrations' now)"),
        ("labelling.queries=many", "unable to parse string as an integer, got 'many'"),
        ("labelling.queries=-3", "labelling.queries: Input should be greater than or equal to 0, got -3"),
        ("labelling.queries=0", "labelling.queries=0 does not reach for 1 rounds"),
        ("labelling.max_micro_usd=-1", "greater than or equal to 0, got -1"),
        (
            "labelling.max_micro_usd=0",
            "labelling.max_micro_usd=0 does not pay for one query at 10000: raise it",
        ),
        (
            "labelling.queries=81",
            "labelling.queries=81 passes the pool of 40 prompts × 2 responses × 1 iterations = 80",
        ),
        ("generation.samples=1", "generation.samples must be at least 2"),
        ("labelling.acquisition.kind=margin", "set labelling.rounds to 2 or more"),
        ("labelling.rounds=11", "labelling.queries=10 does not reach for 11 rounds"),
        ("evaluation.max_micro_usd=1", "evaluation.max_micro_usd allows $0.000001"),
        ("policy.model=./missing", "'./missing' is not a directory"),
        ("embedding.kind=sentence", ""),
        ("name=../escape", "name: String should match pattern"),
        ("prompts.pool=/nowhere.txt", "prompt file /nowhere.txt does not exist"),
        ("labelling.oracle.kind=replay", "labelling.oracle.replay.path: Field required"),
        ("labelling", "must read field.subfield=value"),
        ("name.x=1", "'name' has no fields of its own"),
    ],
)
def test_a_bad_experiment_is_refused_with_the_remedy(tiny_file: Path, home: Path, override: str, message: str) -> None:
    if not message:
        plan(load(Experiment, tiny_file, [override]))
        return
    assert message in refused(tiny_file, override)
    assert not home.exists(), "nothing was written"


def test_an_override_of_a_kind_starts_from_that_kinds_defaults(tiny_file: Path) -> None:
    experiment = load(Experiment, tiny_file, ["evaluator.kind=generative", "evaluator.num_samples=2", "dpo.beta=0.3"])
    assert experiment.evaluator.model_dump()["kind"] == "generative"
    assert experiment.dpo.beta == 0.3


def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert "does not exist: try deployments/experiments/quickstart.yaml" in refused(missing)
    for content, message in (
        ("- a\n- b\n", "must hold a mapping"),
        ("a: [", "is not a YAML file"),
        ("name: x\n", "Field required"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(content)
        assert message in refused(path)


@pytest.mark.parametrize(("folder", "kind"), [("experiments", Experiment), ("studies", LabelEfficiency)])
def test_every_shipped_experiment_and_study_is_valid(folder: str, kind: type[Experiment | LabelEfficiency]) -> None:
    files = sorted((ROOT / "deployments" / folder).glob("*.yaml"))
    assert files
    for path in files:
        load(kind, path)


def test_a_file_outside_of_what_a_worker_lets_experiments_name_is_refused_with_its_field(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NINEFOLD_FILES", str(tmp_path))
    said = refused(tiny_file, f"policy.model={Path(__file__).parent}", "labelling.queries=3")
    assert f"policy.model names {Path(__file__).parent}, and experiments here may name only what lies in" in said
    monkeypatch.setenv("NINEFOLD_FILES", str(tmp_path / "files"))
    assert f"the experiment file names {tiny_file}" in refused(tiny_file)


def test_the_quickstart_keeps_nine_pairs_per_query() -> None:
    planned = plan(load(Experiment, ROOT / "deployments" / "experiments" / "quickstart.yaml"))
    assert planned.pairs >= 9 * planned.queries
    assert planned.seconds < 600


def test_the_experiment_survives_the_round_trip_through_json(tiny_settings: dict[str, Any]) -> None:
    experiment = Experiment.model_validate(tiny_settings)
    assert Experiment.model_validate_json(experiment.model_dump_json()) == experiment
    assert Experiment.model_validate(yaml.safe_load(yaml.safe_dump(experiment.model_dump(mode="json")))) == experiment


def test_no_configuration_exposes_more_than_a_dozen_fields() -> None:
    unvisited: list[Any] = [Experiment]
    while unvisited:
        model = unvisited.pop()
        assert len(model.model_fields) <= (13 if model is Experiment else 12), model  # its sections
        unvisited += [f.annotation for f in model.model_fields.values() if hasattr(f.annotation, "model_fields")]


def test_the_plan_counts_queries_money_and_pairs(tiny_file: Path) -> None:
    planned = plan(load(Experiment, tiny_file))
    assert (planned.queries, planned.micro_usd) == (10, 100_000)
    assert (planned.evaluation_queries, planned.evaluation_micro_usd) == (48, 480_000)
    assert planned.pool_tuples == 80
    assert any("simulated" in line for line in planned.lines())
    assert planned.asking.micro_usd == (100_000, 100_000, 100_000)
    assert planned.asking.tokens == planned.asking.seconds == (0, 0, 0), "nothing is counted or waited for"
    assert "expected $0.10" in "\n".join(planned.lines())
    assert "from $" not in "\n".join(planned.lines()), "a fixed price has no range"


def cap(tokens: int) -> str:
    return f"labelling.max_tokens={tokens}"


def test_the_plan_goes_by_what_earlier_answers_took(tiny_file: Path, home: Path) -> None:
    experiment = load(Experiment, tiny_file, ["labelling.concurrency=2"])
    ledger, oracle = Ledger(settings().ledger_url), experiment.labelling.oracle.fingerprint()
    ledger.open_account("a", max_queries=10, max_micro_usd=1000)
    for number in range(5):
        reserved = ledger.reserve("a", Question(oracle, "c", "p", str(number)), ceiling=1, billed_on_failure=False)
        assert isinstance(reserved, Reservation)
        ledger.settle(reserved, status="labelled", score=0.0, raw="", tokens=0, micro_usd=1, seconds=4.0)
    planned = plan(experiment)
    assert planned.asking.seconds == (20.0, 20.0, 20.0), "10 queries of 4 s, two at once"
    assert "as its last 5 answers took" in "\n".join(planned.lines())


def test_the_plan_of_a_judge_paid_by_the_token_has_a_range(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    prices = "{input: 1000000, output: 4000000}"
    oracle = f"labelling.oracle={{kind: llm_judge, endpoint: {{model: m, prices: {prices}}}}}"
    planned = plan(load(Experiment, tiny_file, [oracle, "labelling.max_micro_usd=1000000"]))
    for what in (planned.asking.micro_usd, planned.asking.tokens, planned.asking.seconds):
        assert 0 < what.low < what.usual < what.high
    assert planned.asking.micro_usd.high <= 1_000_000
    shown = "\n".join(planned.lines())
    assert "(answers without a word) to $" in shown
    assert f"counted with {planned.experiment.policy.model}'s tokenizer" in shown
    assert "a call's time is assumed" in shown
    limited = oracle.replace("model: m", "model: m, requests_per_minute: 6")
    assert plan(load(Experiment, tiny_file, [limited])).asking.seconds.low == 100.0, "10 queries at 6 a minute"
    assert "16,000 tokens and $0.10" in "\n".join(plan(load(Experiment, tiny_file, [oracle, cap(16_000)])).lines())
    assert "does not pay for one query of up to" in refused(tiny_file, oracle, cap(1_000))
    assert "oracle 'gold' is not billed by the token: leave it out" in refused(tiny_file, cap(1_000))
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "environment variable OPENAI_API_KEY is not set" in refused(tiny_file, oracle)
