"""Several machines finish one sweep: what one would have found, each stage once, and again after one of them is killed."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import psutil
import pytest
import yaml

from models.ledger.ledger import Ledger
from tests.support.fake_judge import LoopbackJudge
from tests.support.plugins import EXAMPLE, install
from tests.support.processes import KEY, ROOT, Command, begin, until, with_prefect, without_prefect

ARMS, QUERIES = 3, 10
FILES = ("pool.txt", "held.txt", "seed.jsonl")


class Machine:
    """A folder and a home of its own, with the files that the experiment names; nothing else is shared but by URL."""

    def __init__(self, folder: Path, files: Path, model: Path, environment: dict[str, str]) -> None:
        self.folder, self.home = folder, folder / "home"
        folder.mkdir()
        for name in (*FILES, "base.yaml", "small.yaml"):
            shutil.copy(files / name, folder)
        shutil.copytree(model, folder / "model")
        quick = {
            "PYTHONPATH": f"{ROOT}:{files / 'site'}",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "160",
        }
        self.environment = environment | quick | {"NINEFOLD_HOME": "home", "NINEFOLD_TEST_KEY": KEY}

    def start(self, *arguments: str) -> "Command | subprocess.Popen[bytes]":
        log = self.folder / "log"
        return begin("flows.cli.main", *arguments, environment=self.environment, cwd=self.folder, out=log, session=True)

    def run(self, *arguments: str) -> str:
        """Run a command and return what it says."""
        before = len(self.said())
        process = self.start(*arguments)
        assert process.wait(400) == 0, self.said()
        return self.said()[before:]

    def said(self) -> str:
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""

    @contextmanager
    def working(self) -> Iterator[psutil.Process]:
        command = [sys.executable, "-m", "flows.cli.main", "worker", "--name", self.folder.name]
        # begun from nothing: what is left of it is looked for by the environment that a process begins with
        with (self.folder / "log").open("ab") as log:
            worker = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield psutil.Process(worker.pid)
        finally:
            kill(worker.pid)
            worker.wait(30)


def kill(pid: int) -> None:
    """End a process and all that it has started, as a machine ends that loses its power."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture
def new_machine(
    tmp_path: Path, judged: Path, tiny_settings: dict[str, Any], tiny_model_path: Path
) -> Callable[[str, dict[str, str]], Machine]:
    tiny_settings["prompts"] |= {"pool": "pool.txt", "held_out": "held.txt", "demonstrations": "seed.jsonl"}
    tiny_settings["policy"]["model"] = "./model"
    install(EXAMPLE, tmp_path / "site")  # another package's oracle, on every machine
    tiny_settings["evaluation"]["oracle"] = {"kind": "my_lab/brief"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny_settings))
    sweep = {"name": "small", "base": "base.yaml", "presets": ["random"], "seeds": list(range(ARMS))}
    sweep |= {"training_seeds": [0], "max_micro_usd": 100_000_000}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(sweep))
    return lambda name, environment: Machine(tmp_path / name, tmp_path, tiny_model_path, environment)


def found(machine: Machine) -> dict[str, Any]:
    """Return what a sweep has found: the picks and the figures of each arm."""
    sweep = json.loads((machine.home / "reports/small/sweep.json").read_text())
    assert len(sweep["arms"]) == ARMS
    picks = {
        arm["name"]: list(pd.read_parquet(machine.home / "reports" / arm["name"] / "acquisition.parquet").response_id)
        for arm in sweep["arms"]
    }
    kept = ("queries", "micro_usd", "pairs", "evaluator", "policy")
    return {arm["name"]: ({key: arm["report"][key] for key in kept}, picks[arm["name"]]) for arm in sweep["arms"]}


def runs_of(worker: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the arms that a worker runs."""
    return [child for child in worker.children(recursive=True) if "prefect.engine" in " ".join(child.cmdline())]


def nobody_asks(ledger: Ledger) -> bool:
    """Whether an arm has its labels, and no question is on its way."""
    status = Counter(row["status"] for row in ledger.rows())
    return status["labelled"] >= QUERIES and set(status) == {"labelled"}


def judged(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the queries of the judge on loopback, without those of the package's oracle, which asks nobody."""
    return [row for row in ledger.rows() if not row["oracle"].startswith("my_lab/")]


def completed(api: str) -> Counter[str]:
    """Return how many times each stage was computed to the end, by what Prefect's server knows."""
    counted: Counter[str] = Counter()
    while True:
        wanted = {"limit": 200, "offset": sum(counted.values()), "sort": "ID_DESC"}
        page = httpx.post(f"{api}/task_runs/filter", json=wanted).json()
        counted.update(f"{run['name']}|{run['state_name']}" for run in page)
        if len(page) < 200:
            stages = {key.partition("|")[0]: n for key, n in counted.items() if key.endswith("|Completed")}
            return Counter({name.replace(" ", "_"): n for name, n in stages.items()})


@pytest.mark.usefixtures("prefect_server")
def test_workers_finish_a_sweep_though_one_is_killed(
    new_machine: Callable[[str, dict[str, str]], Machine],
    server: LoopbackJudge,
    shared: dict[str, str],
    tmp_path: Path,
) -> None:
    alone = new_machine("alone", with_prefect())
    alone.run("sweep", "small.yaml")
    once = json.loads((alone.home / "reports/small/sweep.json").read_text())["executed"]
    asked = server.served["reply"]

    dispatcher, *workers = (new_machine(name, shared) for name in ("dispatcher", "one", "two"))
    with ExitStack() as working:
        processes = [working.enter_context(machine.working()) for machine in workers]
        sweep = dispatcher.start("sweep", "small.yaml", "--workers")
        try:
            ledger = Ledger(shared["LEDGER"])
            # what is on its way when its asker dies is paid for, answered or not: the arm would have fewer labels
            until(lambda: nobody_asks(ledger) and runs_of(processes[0]), log=dispatcher.folder / "log", seconds=200)
            kill(processes[0].pid)
            assert sweep.wait(400) == 0, dispatcher.said() + "".join(machine.said() for machine in workers)
        finally:
            kill(sweep.pid)
    said = dispatcher.said()
    assert "the process that ran it has died; it is handed out again" in said
    assert f"arm {ARMS} of {ARMS} is done" in said
    elsewhere = new_machine("elsewhere", shared)
    assert "small.random.s1t0" in elsewhere.run("report", "small.random.s1t0"), "a report is read on any machine"
    assert "exported/preferences" in elsewhere.run("export", "small.random.s0t0", "--to", "exported")
    assert "random" in elsewhere.run("compare", "small")
    assert found(elsewhere) == found(alone), "whoever computes it, and however often it is interrupted"

    rows = judged(ledger)
    assert {row["status"] for row in ledger.rows()} == {"labelled"}
    assert (
        len({(row["prompt"], row["response"]) for row in rows}) == len(rows) == server.served["reply"] - asked == asked
    )
    computed = completed(shared["API"])
    assert not Counter(once) - computed
    # Prefect notes that a stage has ended before it keeps the result: killed in between, that one is computed again
    assert (computed - Counter(once)).total() <= 1, f"what arms share is computed once, not {computed}"

    calls = server.served["reply"]
    elsewhere.run("sweep", "small.yaml")
    assert json.loads((elsewhere.home / "reports/small/sweep.json").read_text())["executed"] == {}
    assert server.served["reply"] == calls


def test_a_worker_that_dies_while_it_asks_loses_what_is_on_its_way_and_one_that_is_told_to_stop_books_it(
    new_machine: Callable[[str, dict[str, str]], Machine], server: LoopbackJudge, shared: dict[str, str]
) -> None:
    server.latency = 2.0
    dispatcher, dies, stops, ends = (new_machine(name, shared) for name in ("dispatcher", "one", "two", "three"))
    ledger = Ledger(shared["LEDGER"])

    def on_their_way() -> set[int]:
        return {row["id"] for row in ledger.rows(status="reserved")}

    sweep = dispatcher.start("sweep", "small.yaml", "--workers", "--set", "seeds=[0]")
    try:
        with dies.working():
            until(on_their_way, log=dispatcher.folder / "log", seconds=200)
        left = on_their_way()
        with stops.working() as worker:
            until(lambda: on_their_way() - left, log=dispatcher.folder / "log", seconds=200)
            worker.send_signal(signal.SIGTERM)
            until(
                lambda: not psutil.pid_exists(worker.pid) or worker.status() == "zombie",
                log=stops.folder / "log",
                seconds=60,
            )
            status = {row["id"]: row["status"] for row in ledger.rows()}
            assert {id for id, said in status.items() if said == "lost"} == left, stops.said()[-4000:]
            assert set(status.values()) == {"labelled", "lost"}
            assert not [p for p in psutil.process_iter(["environ"]) if f"{stops.folder}" in str(p.info["environ"])]
        server.latency = 0.0
        with ends.working():
            assert sweep.wait(300) == 0, dispatcher.said() + ends.said()
    finally:
        kill(sweep.pid)
    assert "the process that ran it has died; it is handed out again" in dispatcher.said()
    rows = judged(ledger)
    labelled = [(row["prompt"], row["response"]) for row in rows if row["status"] == "labelled"]
    assert len(set(labelled)) == len(labelled) == len(rows) - len(left), "no question has two labels"
    # what was on its way may have been answered; nothing else was asked twice
    assert len(labelled) <= server.served["reply"] <= len(labelled) + len(left)


def test_what_workers_would_not_share_is_named(new_machine: Callable[[str, dict[str, str]], Machine], s3: str) -> None:
    places = {"NINEFOLD_STORE_URL": s3, "NINEFOLD_LEDGER_URL": "postgresql+psycopg://u@/nowhere"}
    for environment, rule in (
        ({}, "workers need a store and a ledger that all of them see, not"),
        (places, "set NINEFOLD_MLFLOW_URI to a server or a PostgreSQL URL"),
        (places | {"NINEFOLD_MLFLOW_URI": "http://127.0.0.1:9"}, "set NINEFOLD_PREFECT_URL=http://"),
    ):
        machine = new_machine(f"m{len(environment)}", without_prefect() | environment)
        for command in (["worker"], ["sweep", "small.yaml", "--workers"]):
            refused = machine.start(*command)
            assert refused.wait(60) == 2, machine.said()
            assert rule in machine.said()
            assert not (machine.home / "reports").exists()
