"""The lab's budget as a setting: read once, refused with the remedy, charged whoever opens the ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.core.errors import ConfigError
from models.ledger.accounts import PurseExhausted
from models.ledger.entries import Reservation
from tasks.engine.ledgers import open_ledger
from tasks.engine.settings import settings
from tests.models.ledger.test_ledger import CENT, question


@pytest.fixture(autouse=True)
def _read_anew() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_the_lab_s_budget_is_charged_for_whatever_is_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_BUDGET", "0.01 USD / month")
    for account in ("one", "other"):
        open_ledger().open_account(account, max_micro_usd=9 * CENT)
    held = open_ledger().reserve("one", question(0), ceiling=CENT, billed_on_failure=True)
    assert isinstance(held, Reservation)
    with pytest.raises(
        PurseExhausted, match=r"the purse 'lab 20\d\d-\d\d' has paid \$0.01 of \$0.01;.*NINEFOLD_BUDGET"
    ):
        open_ledger().reserve("other", question(1), ceiling=CENT, billed_on_failure=True)


def test_a_budget_that_cannot_be_read_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_BUDGET", "a lot")
    with pytest.raises(ConfigError, match="^NINEFOLD_BUDGET='a lot' is no budget: write dollars"):
        settings()


def test_a_setting_that_is_wrong_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_SHARD_SIZE", "none")
    with pytest.raises(ConfigError, match="^NINEFOLD_SHARD_SIZE='none': Input should be a valid integer"):
        settings()


@pytest.mark.parametrize(
    ("before", "now"),
    [("LEDGER", "LEDGER_URL"), ("STORE", "STORE_URL"), ("MLFLOW", "MLFLOW_URI"), ("RAY", "RAY_ADDRESS")],
)
def test_a_setting_by_its_old_name_is_refused_with_the_new_one(
    monkeypatch: pytest.MonkeyPatch, before: str, now: str
) -> None:
    monkeypatch.setenv(f"NINEFOLD_{before}", "elsewhere")
    with pytest.raises(ConfigError, match=f"^NINEFOLD_{before} is called NINEFOLD_{now} now"):
        settings()


def test_what_is_not_set_lies_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_HOME", str(tmp_path))
    monkeypatch.setenv("NINEFOLD_STORE_URL", "s3://bucket/place")
    monkeypatch.setenv("NINEFOLD_MLFLOW_URI", "")
    found = settings()
    assert found.store_url == "s3://bucket/place"
    assert found.ledger_url == f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    assert found.mlflow_uri == f"sqlite:///{tmp_path / 'mlflow.sqlite'}"
    assert found.prefect_url is None
