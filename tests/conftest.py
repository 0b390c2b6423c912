"""Fixtures: a home of its own for every test, a real Prefect server, and a tiny language model made in memory."""

from tests.support.isolation import SESSION, become  # before anything reads the environment

# isort: split
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from models.core.data import Response
from models.policies.checkpoint import Checkpoint
from models.policies.language_model import LanguageModel
from tasks.engine.settings import settings
from tests.support import processes
from tests.support.postgres import Postgres, running
from tests.support.tiny_model import write_tiny_model

# A background job of a shell ignores Ctrl-C, and what the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# What takes longest, longest first: begun last, one of the workers would wait for it at the end.
LONGEST = (
    *("deployments", "docs_commands", "workers", "interruptions", "ray", "human", "shared_storage", "proxy_reward"),
    *("label_studio", "shipped_files", "sweep", "judge_run", "cache_reuse", "alpaca_eval", "comparison"),
    *("evaluators", "generative", "accelerate"),
)
# Of these each test is for any worker; the tests of another file share what they have set up, and stay together.
# (xdist's own groups are not seen with pytest 9.2: it renames tests by a private attribute that is no more.)
APART = {
    *("workers", "ray", "human", "shared_storage", "proxy_reward", "sweep", "cache_reuse"),
    *("evaluators", "generative", "accelerate"),
}
SERVERS = {"prefect_server", "postgres", "s3_server", "postgresql"}  # fixtures, and a parameter of one


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if Path(file).stem.removeprefix("test_") in APART else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(name in SERVERS for name in (*getattr(item, "fixturenames", ()), *map(str, parameters))):
            item.add_marker("server")


def pytest_collection_finish() -> None:
    SESSION.restore()  # libraries set variables on being imported; a command that inherits them would not begin warm


def pytest_unconfigure() -> None:
    SESSION.close()


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model_path: Path) -> Checkpoint:
    return Checkpoint(str(tiny_model_path), (), "float32", "plain")


@pytest.fixture
def tiny_model(tiny_checkpoint: Checkpoint) -> LanguageModel:
    return tiny_checkpoint.load_copy()


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server on a socket of its own."""
    with running() as server:
        yield server


@pytest.fixture
def new_database(postgres: Postgres) -> Callable[[], str]:
    """Return a maker of empty databases, by SQLAlchemy URL."""
    return lambda: postgres.url(postgres.new_database())


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 server on loopback: the URL of a bucket."""
    with processes.s3_server("planted-s3-id", "planted-s3-secret") as bucket:
        yield bucket


@pytest.fixture
def s3(s3_server: str) -> str:
    """An empty place on it."""
    return f"{s3_server}/{uuid4().hex}"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database: SQLite, and a real PostgreSQL server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    make: Callable[[], str] = request.getfixturevalue("new_database")
    return make()


_settled = 0


def settle() -> None:
    """Take what the libraries have made on being imported out of the garbage collector's sight.

    accelerate collects after each training, which takes a second among the million objects of torch, Prefect and MLflow.
    """
    global _settled  # noqa: PLW0603
    if len(sys.modules) > _settled + 100:
        gc.collect()
        gc.freeze()
        _settled = len(sys.modules)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A NINEFOLD_HOME of the test's own, not made yet, and an environment that ends with the test.

    Whatever is the user's was left alone when the test ends.
    """
    settle()
    before = dict(os.environ)
    folder = tmp_path / "home"
    monkeypatch.setenv("NINEFOLD_HOME", str(folder))
    settings.cache_clear()
    yield folder
    settings.cache_clear()
    become(before)
    SESSION.check()


@pytest.fixture
def home(own_home: Path) -> Iterator[Path]:
    """The home of the test's own, with the task results in it."""
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: own_home / "prefect" / "storage"}):
        yield own_home


def response(number: int, *, prompt: str = "the film", text: str | None = None, sample: int = 0) -> Response:
    """A response with a readable id."""
    words = text if text is not None else f"is story number {number}"
    return Response(
        id=f"r{number:04}", prompt_id=prompt, prompt=prompt, sample=sample, text=words, tokens=5, logprob=-9.0
    )


@pytest.fixture
def make_response() -> Any:
    return response
