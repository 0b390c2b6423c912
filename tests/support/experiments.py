"""Fixtures of whole runs: a tiny experiment, a judge on loopback, and what several machines share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.runtime.empty_databases import lay_mlflow_database
from tests.support.fake_judge import LoopbackJudge
from tests.support.postgres import Postgres
from tests.support.processes import KEY, prefect_server, without_prefect
from tests.support.tiny_experiment import tiny_experiment

__all__ = ["home", "judged", "prefect_apart", "prefect_database", "server", "shared", "tiny_file", "tiny_settings"]


@pytest.fixture
def home(home: Path, request: pytest.FixtureRequest) -> Path:
    """A home as it is after a first run, where flows are run in the tests' own process."""
    if "prefect_server" in request.fixturenames:
        home.mkdir()
        lay_mlflow_database(home / "mlflow.sqlite")
    return home


@pytest.fixture
def tiny_settings(tmp_path: Path, tiny_model_path: Path) -> dict[str, Any]:
    return tiny_experiment(tmp_path, tiny_model_path)


@pytest.fixture
def tiny_file(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return path


@pytest.fixture
def server() -> Iterator[LoopbackJudge]:
    with LoopbackJudge(faults={"rate_limit": 0.05, "error": 0.05}) as judge:
        yield judge


@pytest.fixture
def judged(tmp_path: Path, tiny_settings: dict[str, Any], server: LoopbackJudge) -> Path:
    endpoint = {
        "model": "judge",
        "base_url": server.url,
        "api_key_env": "NINEFOLD_TEST_KEY",
        "prices": {"input": 1_000_000, "output": 2_000_000},
    }
    tiny_settings["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": endpoint}, "max_micro_usd": 200_000}
    path = tmp_path / "judged.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return path


@pytest.fixture
def prefect_database(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture
def prefect_apart(tmp_path: Path, postgres: Postgres, prefect_database: str) -> Iterator[str]:
    """A Prefect server that is none of the machines', its own database on PostgreSQL; yields its API."""
    with prefect_server(postgres.url(prefect_database, driver="asyncpg"), tmp_path) as api:
        yield api


@pytest.fixture
def shared(s3: str, new_database: Callable[[], str], prefect_apart: str, tmp_path: Path) -> dict[str, str]:
    """The environment that makes the embedded installation a shared one; nothing else changes."""
    places = {"NINEFOLD_STORE_URL": s3, "NINEFOLD_LEDGER_URL": new_database(), "NINEFOLD_MLFLOW_URI": new_database()}
    places["NINEFOLD_PREFECT_URL"] = prefect_apart
    settings = tmp_path / "shared.env"
    settings.write_text("".join(f"{name}={place}\n" for name, place in places.items()))
    named = {"NINEFOLD_SETTINGS": str(settings), "LEDGER": places["NINEFOLD_LEDGER_URL"], "API": prefect_apart}
    return without_prefect() | named | {"NINEFOLD_TEST_KEY": KEY}
