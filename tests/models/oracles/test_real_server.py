"""The judge over a real model behind a real server: `transformers serve` with the packaged SmolLM2.

It is the one server that needs nothing beyond what is installed already. It ignores `response_format` and log-probabilities,
which the server of tests/support/fake_judge.py has, and a model this small seldom ends with a verdict: what is checked is
that every reply is read strictly or quarantined with its text, and priced by what the server counted.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.core.money import Prices
from models.core.rubric import Rubric
from models.labelling.label import LabellingSession, label_responses
from models.ledger.ledger import Ledger
from models.oracles.chat_client import Endpoint, close_clients
from models.oracles.llm_judge import LLMJudge, stated_score
from models.policies.resolve import PACKAGED, locate, tokenizer_at_hand
from tests.conftest import response
from tests.support.processes import free_port, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log.txt"
    model = locate(PACKAGED).source
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    prices = Prices(input=1_000_000, output=10_000_000)
    with serving(command, port, log=log, environment={**os.environ, "HF_HUB_OFFLINE": "1"}) as url:
        try:
            yield Endpoint(model=model, base_url=f"{url}/v1", prices=prices, max_tokens=40, timeout=120)
        finally:
            close_clients()


def test_a_real_model_is_read_strictly_and_priced_as_the_server_counts(
    server: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    judge = LLMJudge(endpoint=server, structured_output=False, attempts=1)
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    questions = [
        response(n, prompt="What is two and two?", text=text) for n, text in enumerate(["Four.", "A fish.", ""])
    ]
    labels = label_responses(
        questions, LabellingSession(ledger, judge, Rubric(), "a"), max_queries=3, max_micro_usd=10**6, concurrency=2
    )
    count = tokenizer_at_hand(PACKAGED)
    assert count is not None
    rows = list(ledger.rows())
    assert len(rows) == len(labels) == 3
    for row in rows:
        (text,) = json.loads(row["raw"])["texts"]
        assert text, "the model has said something"
        stated = stated_score(text, structured_output=False)
        assert row["status"] == ("quarantined" if stated is None else "labelled")
        assert row["score"] == (None if stated is None else stated.score)
        sent, written = _split(row["micro_usd"], row["tokens"])
        assert written in {count(text), count(text) + 1, 40}, "with the end token, or cut off"
        assert sent <= judge._most_sent(row["prompt"], row["response"])
        assert row["micro_usd"] <= judge.max_cost(row["prompt"], row["response"])
    assert ledger.spent("a").micro_usd == sum(row["micro_usd"] for row in rows)


def _split(micro_usd: int, tokens: int) -> tuple[int, int]:
    """Return the tokens sent and written: they cost 1 and 10 micro-dollars each."""
    written, rest = divmod(micro_usd - tokens, 9)
    assert rest == 0
    return tokens - written, written
