"""A whole run with a language model as the oracle: the books agree to the micro-dollar, and the key is nowhere."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from models.ledger.ledger import Ledger
from tests.support.fake_judge import LoopbackJudge
from tests.support.processes import finished, without_prefect

KEY, WRONG = "sk-planted-0123456789abcdef", "sk-wrong-fedcba9876543210"
FAULTS = {"rate_limit": 0.05, "error": 0.05, "truncated": 0.05, "drop": 0.05, "out_of_range": 0.4}


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with LoopbackJudge(faults=dict(FAULTS), key=KEY) as judge:
        yield judge


@pytest.fixture
def judged(tmp_path: Path, tiny_settings: dict[str, Any], server: LoopbackJudge) -> Path:
    prices = {"input": 1_000_000, "output": 2_000_000, "cached": 500_000}
    endpoint = {
        "model": "judge",
        "base_url": server.url,
        "api_key_env": "NINEFOLD_TEST_KEY",
        "prices": prices,
        "timeout": 5.0,
    }
    tiny_settings["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": endpoint}, "max_micro_usd": 200_000}
    path = tmp_path / "judged.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return path


def ninefold(*arguments: str, home: Path, key: str) -> subprocess.CompletedProcess[str]:
    own = {"NINEFOLD_HOME": str(home), "NINEFOLD_TEST_KEY": key, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    return finished("flows.cli.main", *arguments, environment=without_prefect() | own)


def where(text: str, home: Path) -> set[str]:
    """Return the files of a home, databases and their journals included, that hold a text."""
    return {str(f.relative_to(home)) for f in home.rglob("*") if f.is_file() and text.encode() in f.read_bytes()}


def test_the_books_agree_the_key_is_nowhere_and_another_ledger_is_told(
    tmp_path: Path, judged: Path, server: LoopbackJudge
) -> None:
    home = tmp_path / "home"
    refused = ninefold("run", str(judged), home=home, key=WRONG)
    assert refused.returncode == 2
    assert "refused the call with 401" in refused.stderr
    assert "Incorrect API key: $NINEFOLD_TEST_KEY" in refused.stderr, "the server says the key, and it is left out"
    done = ninefold("run", str(judged), home=home, key=KEY)
    assert done.returncode == 0, done.stderr
    for key in (WRONG, KEY):
        assert where(key, home) == set()
        assert key not in refused.stdout + refused.stderr + done.stdout + done.stderr
    for place in ("/artifacts/experiment.json", "prefect/storage", "prefect/prefect.db"):
        assert place in " ".join(where("NINEFOLD_TEST_KEY", home)), "what is searched does hold the parameters"
    assert "ledger.sqlite" in " ".join(where("by the rule", home)), "and the replies"
    labels = pd.concat([pd.read_parquet(path) for path in Path(home, "store", "labels").glob("*.parquet")])
    assert set(labels.remark[labels.status == "labelled"]) == {"by the rule"}, (
        "justifications stand beside their scores"
    )

    report = json.loads((home / "reports" / "tiny" / "report.json").read_text())
    books = report["budget_audit"]
    assert books["agree"] is True
    assert books["ledger"] == books["replies"] + books["lost"] == report["micro_usd"] + report["evaluation_micro_usd"]
    rows = list(Ledger(f"sqlite:///{home / 'ledger.sqlite'}").rows())
    assert sum(row["micro_usd"] for row in rows) == books["paid"] <= books["ledger"], (
        "what was paid for is in the ledger"
    )
    assert books["lost"] == sum(row["micro_usd"] for row in rows if row["status"] == "lost") > 0
    answered = server.served["reply"] + server.served["out_of_range"]
    read = [json.loads(row["raw"]) for row in rows if row["status"] != "lost"]
    assert sum(len(raw["texts"]) for raw in read) == answered, "every reply is in the ledger, the unreadable ones too"
    assert "between length and the oracle's score" in done.stdout
    assert re.search(r"unreadable\s+│ \d+ of \d+ replies", done.stdout)

    for file in home.glob("ledger.sqlite*"):
        file.unlink()
    again = ninefold("run", str(judged), home=home, key=KEY)
    assert again.returncode == 0, again.stderr
    assert "The budget audit fails: ledger $0.00, replies $" in again.stdout
