"""AlpacaEval 2 of a finished run: the real package, a judge on loopback, the money in the ledger."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from flows.benchmarks import benchmarks
from flows.config.experiment import Experiment
from flows.evaluation.alpaca_eval import AlpacaEvalConfig
from flows.proxy_reward import proxy_reward
from flows.reporting.export import load_finished_run
from flows.reporting.storage import finite, report_folder
from models.benchmarks.lm_eval import Task
from models.core.data import Prompt
from models.core.money import Prices
from models.core.randomness import seed_of
from models.ledger.ledger import Ledger
from models.oracles.alpaca_eval import AlpacaEval
from models.oracles.chat_client import Endpoint, close_clients
from tasks.engine.settings import settings
from tests.support.fake_judge import LoopbackJudge
from tests.support.processes import ROOT, with_prefect

NOUNS = ("film", "story", "tale", "plot", "cast", "ending", "music", "acting", "director", "delight")
INSTRUCTIONS = [f"the {noun} is" for noun in NOUNS]
PRICES = Prices(input=10_000_000, output=30_000_000)
PRICE = 60 * 10 + 40 * 10 + 10 * 30  # micro-dollars that a judgement costs here
KEY = "sk-planted-0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield
    close_clients()


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with LoopbackJudge(faults={"rate_limit": 0.1, "drop": 0.15}, hang=5.0) as judge:
        yield judge


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.json"
    rows = [{"instruction": text, "output": "warm and witty", "generator": "other"} for text in INSTRUCTIONS]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    """Task files that stand in for MMLU's, whose questions are on the hub."""
    place = tmp_path / "tasks"
    place.mkdir()
    rows = place / "questions.jsonl"
    asked = [
        {"prompt": text, "choices": ["a mess", "a delight"], "answer": n % 2} for n, text in enumerate(INSTRUCTIONS)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    task = {
        "task": "mmlu",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "fewshot_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    (place / "mmlu.yaml").write_text(yaml.safe_dump(task))
    return place


def config_at(server: LoopbackJudge, reference: Path, **fields: Any) -> AlpacaEvalConfig:
    endpoint = Endpoint(model="judge", base_url=server.url, prices=PRICES)
    judge = AlpacaEval(endpoint=endpoint, reference=reference)
    return AlpacaEvalConfig(**{"judge": judge, "max_micro_usd": 10_000_000, **fields})


def mean_said(which: str) -> float:
    """Return the mean of what the ledger says of a policy's answers, sampled here once more."""
    known = load_finished_run("tiny")
    said = {(r["prompt"], r["response"]): r["score"] for r in Ledger(settings().ledger_url).rows(status="labelled")}
    prompts = [Prompt(str(n), text) for n, text in enumerate(INSTRUCTIONS)]
    policy = known.artifacts.sft_policy if which == "before" else known.artifacts.policy
    seed = seed_of(known.experiment.seeds.training, 0, "alpaca_eval")
    answers = known.experiment.generation.sample(policy.checkpoint(), prompts, samples=1, seed=seed, what="again")
    return float(np.mean([said[answer.prompt, answer.text] for answer in answers]))


@pytest.mark.usefixtures("prefect_server", "home")
def test_both_policies_stand_against_the_reference_and_nothing_is_bought_twice(
    tiny_settings: dict[str, Any], server: LoopbackJudge, reference: Path, mmlu: Path
) -> None:
    import mlflow

    report = proxy_reward(Experiment.model_validate(tiny_settings))
    too_little = config_at(server, reference).judge.max_cost(INSTRUCTIONS[0], "a few words") + 3 * PRICE
    with pytest.raises(ValueError, match=r"the money has covered \d+ of 10 judgements: raise --max-micro-usd"):
        benchmarks("tiny", [], alpaca_eval=config_at(server, reference, max_micro_usd=too_little))
    bought = server.served["reply"]
    assert 0 < bought < 20
    task = Task.parse("mmlu:5", limit=0, folder=mmlu)
    rows = benchmarks("tiny", [task], alpaca_eval=config_at(server, reference), average=True)
    assert [row["benchmark"] for row in rows] == ["alpaca_eval", "mmlu:5", "average"]
    raw, accuracy, average = rows
    assert raw["metric"] == "win rate", "at equal length only where the instructions' difficulties are known"
    assert raw["questions"] == 10

    for which in ("before", "after"):
        assert raw[which] == pytest.approx(mean_said(which))
    assert average["before"] == pytest.approx((raw["before"] + accuracy["before"]) / 2)
    assert average["gain"].mean == pytest.approx((raw["gain"].mean + accuracy["gain"].mean) / 2)
    assert average["gain"].low <= average["gain"].mean <= average["gain"].high
    assert average["metric"] == "mean of alpaca_eval, mmlu:5"
    # the ledger has each answer once, and the first attempt's are among them
    calls = server.served["reply"]
    assert calls <= 20, "each answer once, whatever was lost on the way"
    assert benchmarks("tiny", [task], alpaca_eval=config_at(server, reference), average=True) == rows
    assert server.served["reply"] == calls
    mlflow.set_tracking_uri(settings().mlflow_uri)
    metrics = mlflow.get_run(report.mlflow_run).data.metrics
    assert metrics["benchmark.alpaca_eval.gain"] == pytest.approx(raw["gain"].mean)
    assert metrics["benchmark.average.m2"] == pytest.approx(average["after"])
    kept = json.loads((report_folder("tiny") / "benchmarks.json").read_text())
    assert kept == [finite(row) for row in rows]
    benchmarks("tiny", [Task.parse("mmlu:5", limit=4, folder=mmlu)])
    left = json.loads((report_folder("tiny") / "benchmarks.json").read_text())
    assert [row["benchmark"] for row in left] == ["alpaca_eval", "mmlu:5"], "the average was of another"


def hub_cache(folder: Path, reference: Path) -> Path:
    """The hub's cache, with the answers to beat and the instructions' difficulties in the published files' form."""
    repository = folder / "datasets--tatsu-lab--alpaca_eval"
    snapshot = repository / "snapshots" / "one"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("one")
    (snapshot / "alpaca_eval_gpt4_baseline.json").write_bytes(reference.read_bytes())
    rng, rows = np.random.default_rng(0), []
    for model, sign in (("verbose", -1.0), ("concise", 1.0)):
        rows += [
            {
                "model": model,
                "index": n,
                "instruction_difficulty": float(n % 3) - 1.0,
                "std_delta_len": sign * float(abs(rng.normal(1.0, 0.3))),
                "preference": float(rng.uniform(0.3, 0.7)),
                "not_gamed_baseline": False,
            }
            for n in range(len(INSTRUCTIONS))
        ]
    pd.DataFrame(rows).to_csv(snapshot / "df_gamed.csv", index=False)
    return folder


@pytest.mark.usefixtures("prefect_server")
def test_the_paper_s_suite_is_one_command_that_asks_before_it_buys(
    tiny_settings: dict[str, Any], home: Path, tmp_path: Path, server: LoopbackJudge, reference: Path, mmlu: Path
) -> None:
    proxy_reward(Experiment.model_validate(tiny_settings))
    judge = tmp_path / "judge.yaml"
    endpoint = {"model": "judge", "base_url": server.url, "prices": PRICES.model_dump(exclude={"cached"})}
    judge.write_text(yaml.safe_dump({"endpoint": endpoint}))
    cache = hub_cache(tmp_path / "hub", reference)

    def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "flows.cli.main",
                "evaluate",
                "tiny",
                "--suite",
                "paper",
                "--tasks-from",
                str(mmlu),
                *arguments,
            ],
            cwd=ROOT,
            env={**with_prefect(), "NINEFOLD_HOME": str(home), "HF_HUB_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )

    refused = evaluate("--judge", str(judge))
    assert refused.returncode == 2
    assert "20 judgements by judge will be bought, less those in the ledger; expected $0.0" in refused.stdout
    assert "not confirmed, so nothing was bought" in refused.stderr
    assert not server.log
    done = evaluate("--judge", str(judge), "--yes")
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith(("alpaca_eval", "mmlu", "average"))]
    assert [line.split()[0] for line in table] == ["alpaca_eval", "alpaca_eval:lc", "mmlu:5", "mmlu:0", "average"]
    assert "mean of alpaca_eval:lc, mmlu:5, mmlu:0" in table[-1]
    assert KEY not in done.stdout + done.stderr
    assert not [f for f in home.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]
    rows = {row["benchmark"]: row for row in json.loads((home / "reports/tiny/benchmarks.json").read_text())}
    level = rows["alpaca_eval:lc"]
    assert level["metric"] == "length-controlled win rate"
    assert 0 < level["before"] < 1
    gain = level["gain"]
    assert gain["low"] < gain["mean"] < gain["high"] or gain["mean"] == 0
    averaged = ("alpaca_eval:lc", "mmlu:5", "mmlu:0")
    assert rows["average"]["after"] == pytest.approx(np.mean([rows[name]["after"] for name in averaged]))


def test_what_is_missing_is_said_before_anything_is_bought(
    server: LoopbackJudge, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="alpaca_eval_gpt4_baseline.json of the hub's dataset"):
        AlpacaEvalConfig(judge=AlpacaEval(), max_micro_usd=1).check()
    one = AlpacaEvalConfig(judge=AlpacaEval(), max_micro_usd=1, limit=1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache(tmp_path / "hub", reference)))
    with pytest.raises(ValueError, match="limit=1 leaves the length control nothing to compare"):
        one.check()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="is not set: export the key"):
        config_at(server, reference).check()
    assert not server.log
