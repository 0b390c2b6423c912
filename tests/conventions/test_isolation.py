"""Tests have a home of their own: the default one in the clone is neither read nor written, nor is the user's cache."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.core.cache import cache_folder
from models.ledger.ledger import Ledger
from tasks.engine.settings import settings
from tests.support.isolation import ROOT, SESSION, Touched
from tests.support.processes import ninefold, with_prefect, without_prefect

DEFAULT = ROOT / "artifacts"
THEIRS = {
    "NINEFOLD_HOME": "their-home",
    "NINEFOLD_STORE_URL": "s3://theirs/ninefold",
    "NINEFOLD_LEDGER_URL": "postgresql+psycopg://theirs/ledger",
    "NINEFOLD_SETTINGS": "theirs.env",
    "NINEFOLD_CACHE": "their-cache",
    "PREFECT_API_URL": "http://theirs/api",
    "PREFECT_PROFILE": "theirs",
    "MLFLOW_TRACKING_URI": "http://theirs",
    "OPENAI_API_KEY": "sk-theirs",
    "HF_TOKEN": "hf-theirs",
    "AWS_ACCESS_KEY_ID": "theirs",
}


def test_a_test_has_an_empty_home_of_its_own(tmp_path: Path) -> None:
    assert settings().home == tmp_path / "home"
    assert not settings().home.exists()
    assert not settings().model_fields_set & {"store_url", "ledger_url", "mlflow_uri", "prefect_url"}
    assert not cache_folder().is_relative_to(Path.home() / ".cache")


def test_nothing_of_the_users_environment_reaches_a_test() -> None:
    command = [sys.executable, "-m", "pytest", __file__, "-k", "empty_home or has_none_of"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | THEIRS, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_environment_has_none_of_their_values() -> None:
    assert not {name: value for name, value in os.environ.items() if THEIRS.get(name) == value}


@pytest.mark.parametrize(
    "touch",
    [
        (DEFAULT / "servers.json").read_text,
        Path("artifacts", "servers.json").open,
        lambda: list((DEFAULT / "reports").iterdir()),
        lambda: (DEFAULT / "reports").mkdir(parents=True),
        (DEFAULT / "ledger.sqlite").unlink,
        lambda: sqlite3.connect(DEFAULT / "ledger.sqlite"),
        lambda: Ledger(f"sqlite:///{DEFAULT / 'ledger.sqlite'}"),
        (Path.home() / ".cache" / "ninefold" / "a-model").open,
        lambda: subprocess.run(["sh", "-c", "true"], cwd=ROOT, env={}),
        lambda: ninefold("labels", "list", home=DEFAULT, environment=without_prefect()),
    ],
)
def test_whoever_touches_what_is_the_users_fails(touch: Callable[[], Any]) -> None:
    with pytest.raises(Touched, match="is the user's|the default home would be that of"):
        touch()
    with pytest.raises(Touched):
        SESSION.check()  # as every test does in the end: this one has caught it


def test_a_default_home_that_a_test_asks_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NINEFOLD_HOME")
    settings.cache_clear()
    with pytest.raises(Touched):
        Ledger(settings().ledger_url)
    with pytest.raises(Touched, match="give it NINEFOLD_HOME"):
        subprocess.run([sys.executable, "-m", "flows.cli.main", "labels", "list"], cwd=ROOT)
    for _ in range(2):
        with pytest.raises(Touched):
            SESSION.check()


def test_commands_have_the_home_that_they_are_given_and_no_profile_of_the_users() -> None:
    assert not [name for name in without_prefect() if name.startswith("PREFECT_")]
    assert Path(with_prefect()["PREFECT_HOME"]).is_relative_to(SESSION.folder)
