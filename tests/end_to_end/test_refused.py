"""Questions that a judge's server refuses are quarantined, and the run goes on to a report of what there is."""

from typing import Any

import pytest

from flows.reporting.run_text import headlines, warnings
from flows.reporting.schema import RunReport
from models.ledger.ledger import Ledger
from models.oracles.base import refused
from models.oracles.chat_client import close_clients
from tasks.engine.settings import settings
from tests.support.fake_judge import LoopbackJudge
from tests.support.tiny_runs import run

pytestmark = pytest.mark.usefixtures("prefect_server", "home")

FILTERED = {"error": {"message": "The response was filtered", "code": "content_filter", "param": "prompt"}}


def test_a_content_filter_at_a_few_questions_leaves_a_report_of_the_others(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NINEFOLD_TEST_KEY", "loopback")
    about = {"the bad film is": "no", "the dull": "no"}  # one that is held out; ten of the pool's forty
    with LoopbackJudge(about=about, says={"no": (400, FILTERED)}) as server:
        prices = {"input": 1_000_000, "output": 2_000_000}
        endpoint = {"model": "judge", "base_url": server.url, "api_key_env": "NINEFOLD_TEST_KEY", "prices": prices}
        judge = {"kind": "llm_judge", "endpoint": endpoint}
        given = {
            "labelling__oracle": judge,
            "labelling__max_micro_usd": 200_000,
            "labelling__acquisition": {"kind": "random"},
        }
        report = run(tiny_settings, **given)
        asked = len(server.log)
        again = run(tiny_settings, **given)
        assert len(server.log) == asked, "what was refused is not asked again"
    close_clients()
    rows = list(Ledger(settings().ledger_url).rows(status="quarantined"))
    about_pool = [row for row in rows if "the dull" in row["prompt"]]
    assert all(refused(row["raw"]) and row["micro_usd"] == 0 for row in rows)
    assert report["quarantined"] == report["oracle_facts"]["refused"] == len(about_pool) > 0
    assert report["queries"] == 10
    assert report["unscored"] == 2, "two answers of each policy to the held-out prompt"
    assert report["budget_audit"]["agree"] is True
    assert any(
        "2 held-out pairs of answers lack a score" in said for said in warnings(RunReport.model_validate(report))
    )
    assert (
        "  refused",
        f"{len(about_pool)} questions, by the oracle's server: not billed",
    ) in headlines(RunReport.model_validate(report))
    assert again["policy"] == report["policy"]
