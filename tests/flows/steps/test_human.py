"""A run that asks people: it pauses in a terminal, is suspended in a deployment, and goes on when answers are imported."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.labelling.human_queue import Queue
from models.labelling.label_files import read_lines, write_rows
from models.ledger.ledger import Ledger
from tests.support.processes import Command, begin, finished, until, without_prefect

ROOT = Path(__file__).parents[3]
QUERIES = 6


@pytest.fixture
def asking(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    people = {"kind": "human", "annotators": 2, "micro_usd": 1000}
    tiny_settings["labelling"] |= {"oracle": people, "queries": QUERIES}
    tiny_settings["evaluation"]["oracle"] = {"kind": "gold"}
    path = tmp_path / "asking.yaml"
    path.write_text(yaml.safe_dump(tiny_settings))
    return path


class Terminal:
    """Commands against one home; with a Prefect server of its own where `api` is none."""

    def __init__(self, home: Path, api: str | None = None) -> None:
        self.home = home
        self.ledger = Ledger(f"sqlite:///{home / 'ledger.sqlite'}")
        self.environment = {
            **without_prefect(),
            "NINEFOLD_HOME": str(home),
            "COLUMNS": "160",
            "PYTHONUNBUFFERED": "1",
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect" / "storage"),
            "PYTHONPATH": str(ROOT),
        } | ({"PREFECT_API_URL": api, "PREFECT_HOME": str(home / "prefect")} if api else {})

    @contextmanager
    def start(self, *module: str) -> "Iterator[Command | subprocess.Popen[bytes]]":
        log = self.home / "output.txt"
        process = begin(*module, environment=self.environment, cwd=ROOT, out=log, session=True)
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # with its Prefect server, which outlives it otherwise
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def ninefold(self, *arguments: str) -> str:
        done = finished("flows.cli.main", *arguments, environment=self.environment, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def until(self, true: Callable[[], Any], seconds: float = 120.0) -> Any:
        return until(true, log=self.home / "output.txt", seconds=seconds)

    def answer(self, annotators: tuple[str, ...]) -> str:
        """Fill in the queue as each annotator; return what the last import says."""
        said = ""
        for annotator in annotators:
            file = self.home / f"{annotator}.csv"
            self.ninefold("labels", "export", str(file), "--queue", "--annotator", annotator)
            lines = read_lines(file)
            rows = [{**line.row, "score": int(line.row["item"]) % 6} for line in lines]
            write_rows(file, rows, list(lines[0].row))
            said = self.ninefold("labels", "import", str(file))
        return said

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "reports" / "tiny" / "report.json").read_text())
        return found


@pytest.fixture
def home_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def test_a_run_in_a_terminal_pauses_and_goes_on_when_people_have_answered(home_folder: Path, asking: Path) -> None:
    terminal = Terminal(home_folder)
    run = ["flows.cli.main", "run", str(asking)]
    with terminal.start(*run) as first:
        terminal.until(lambda: Queue(terminal.ledger).items())
        terminal.until(lambda: f"{QUERIES} questions wait for people" in (home_folder / "output.txt").read_text())
        assert "2 judgements missing" not in (said := terminal.answer(("ada",)))
        assert f"{QUERIES} questions open, {QUERIES} judgements missing" in said
        assert first.poll() is None, "half of the judgements do not let it go on"
        os.killpg(first.pid, signal.SIGKILL)  # who waits for days may as well be stopped
        first.wait()
    with terminal.start(*run) as second:
        terminal.until(
            lambda: "wait for people" in (home_folder / "output.txt").read_text().split("experiment tiny")[-1]
        )
        said = terminal.answer(("bob",))
        assert f"{QUERIES} questions settled" in said
        assert "0 questions open" in said
        assert "Krippendorff's alpha 1.00" in said
        assert second.wait(120) == 0, (home_folder / "output.txt").read_text()
    report = terminal.report()
    assert (report["queries"], report["micro_usd"]) == (QUERIES, QUERIES * 2000)
    assert report["oracle"] == "people"
    assert report["oracle_simulated"] is False
    assert report["oracle_facts"]["krippendorff_alpha"] == 1.0
    assert report["budget_audit"]["agree"] is True
    assert len(list(terminal.ledger.rows(status="labelled"))) >= QUERIES


def test_a_deployed_run_is_suspended_and_a_worker_finishes_it(
    prefect_server: None, home_folder: Path, asking: Path
) -> None:
    from prefect import flow, get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments import run_deployment
    from prefect.settings import PREFECT_API_URL

    terminal = Terminal(home_folder, api=str(PREFECT_API_URL.value()))

    def state() -> Any:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(run.id).state

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="people", type="process"))
    source: Any = flow.from_source(str(ROOT), entrypoint="flows/proxy_reward.py:proxy_reward")
    source.deploy(name="people", work_pool_name="people", print_next_steps=False, ignore_warnings=True)
    with terminal.start("prefect", "worker", "start", "--pool", "people", "--type", "process"):
        given = {"experiment": yaml.safe_load(asking.read_text())}
        run: Any = run_deployment("proxy-reward/people", parameters=given, timeout=0)
        terminal.until(lambda: state().name == "Suspended")
        assert len(Queue(terminal.ledger).items()) == QUERIES
        said = terminal.answer(("ada", "bob"))
        assert "run tiny goes on" in said
        terminal.until(lambda: state().is_final())
        assert state().is_completed(), (home_folder / "output.txt").read_text()
    assert terminal.report()["budget_audit"]["agree"] is True
    assert len([row for row in terminal.ledger.rows() if row["oracle"].startswith("human")]) == QUERIES
