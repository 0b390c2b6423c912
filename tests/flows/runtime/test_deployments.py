"""What a lab leaves running: real servers, deployments, a schedule that fires, a worker, and retries where it failed."""

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import yaml

from flows.runtime.servers import Servers, port_taken
from models.ledger.ledger import Ledger
from tests.support.browser import browser, prefect_page
from tests.support.fake_judge import LoopbackJudge
from tests.support.processes import finished, free_port, until, without_prefect

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "deployments" / "prefect.yaml"
KEY = "sk-planted-0123456789abcdef"


class Lab:
    """A home with its servers up, as `ninefold up --detach` leaves it; commands run in the lab's own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        home = {"NINEFOLD_HOME": str(self.home), "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        self.environment = {**without_prefect(), **home, "NINEFOLD_TEST_KEY": KEY, "PREFECT_WORKER_QUERY_SECONDS": "1"}
        self.ports = (free_port(), free_port())
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{self.ports[1]}/api", timeout=30)
        self.api.headers["Prefect-Csrf-Client"] = str(uuid4())

    def command(self, *arguments: str, **environment: str) -> str:
        done = finished(*arguments, environment=self.environment | environment, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> str:
        mlflow, prefect = map(str, self.ports)
        ports = ["--mlflow-port", mlflow, "--prefect-port", prefect]
        said = self.command("flows.cli.main", "up", "--detach", *ports, "--deployments", "prefect.yaml")
        self.password = json.loads((self.home / "servers.json").read_text())["password"]
        assert f"password   {self.password}" in said
        self.api.auth = httpx.BasicAuth(*self.password.split(":"))
        token = self.api.get("/csrf-token", params={"client": self.api.headers["Prefect-Csrf-Client"]}).json()["token"]
        self.api.headers["Prefect-Csrf-Token"] = token
        return said

    def prefect(self, *arguments: str) -> str:
        return self.command(
            "prefect", *arguments, PREFECT_API_URL=str(self.api.base_url), PREFECT_API_AUTH_STRING=self.password
        )

    def post(self, path: str, body: dict[str, Any]) -> Any:
        def answered() -> Any:  # 503: the database is busy, come again
            found = self.api.post(path, json=body)
            return None if found.status_code == 503 else found

        return self.until(answered).raise_for_status().json()

    def deployments(self) -> dict[str, Any]:
        return {found["name"]: found for found in self.post("/deployments/filter", {})}

    def start(self, deployment: str = "run", **parameters: Any) -> str:
        path = f"/deployments/{self.deployments()[deployment]['id']}/create_flow_run"
        found: str = self.post(path, {"parameters": parameters, "state": {"type": "SCHEDULED"}})["id"]
        return found

    def run(self, run: str) -> Any:
        return self.api.get(f"/flow_runs/{run}").json()

    def ended(self, run: str, state: str, count: int = 1) -> Any:
        self.until(lambda: (of := self.run(run)).get("run_count") == count and of["state_type"] in FINAL)
        found = self.run(run)
        assert found["state_type"] == state, found["state"]["message"] + "\n".join(self.said(run))
        return found

    def said(self, run: str) -> list[str]:
        logs = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
        found: list[str] = []
        while page := self.post("/logs/filter", logs | {"offset": len(found)}):
            found += [line["message"] for line in page]
        return found

    def until(self, true: Callable[[], Any], seconds: float = 180.0) -> Any:
        return until(true, log=self.home / "servers.log", seconds=seconds)

    def report(self, name: str) -> Any:
        return json.loads((self.home / "reports" / name / "report.json").read_text())


FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.fixture
def lab(tmp_path: Path, tiny_file: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    sweep = {"name": "ablation", "base": str(tiny_file), "presets": ["random"], "max_micro_usd": 10_000_000}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"grid": {"labelling.queries": [5, 10]}}))
    shipped = yaml.safe_load(SHIPPED.read_text())
    for deployment in shipped["deployments"]:
        file = {"experiment": "tiny.yaml"} if deployment["name"] == "run" else {"sweep": "sweep.yaml"}
        deployment["parameters"] = file
        for schedule in deployment.get("schedules", []):
            schedule |= {"cron": "* * * * * */20", "active": True}  # every 20 s, or the test waits for the night
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(shipped))
    try:
        yield lab
    finally:
        lab.command("flows.cli.main", "down")


def test_a_schedule_fires_failures_are_retried_and_a_stopped_worker_loses_nothing(lab: Lab) -> None:
    """One test: servers take half a minute to come up."""
    assert f"http://127.0.0.1:{lab.ports[0]}/#/experiments" in (said := lab.up())
    assert f"http://127.0.0.1:{lab.ports[1]}" in said
    assert "deployments  those of prefect.yaml" in said
    assert "up already" in lab.up(), "a second one starts nothing"
    assert_all_is_deployed(lab)
    assert_that_no_other_page_may_use_it(lab)
    a_schedule_fires_and_a_worker_finishes(lab)
    a_failed_run_is_retried_where_it_failed(lab)
    what_a_stopped_worker_leaves_goes_on(lab)
    what_a_killed_keeper_leaves_is_ended(lab)


def assert_all_is_deployed(lab: Lab) -> None:
    found = lab.deployments()
    assert {name: set(of["tags"]) for name, of in found.items()} == {
        "run": {"ninefold"},
        "sweep": {"ninefold", "sweep"},
        "nightly": {"ninefold", "sweep", "nightly"},
    }
    assert {of["work_pool_name"] for of in found.values()} == {"ninefold"}
    assert found["nightly"]["global_concurrency_limit"]["limit"] == 1
    assert found["nightly"]["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert lab.api.get("/work_pools/ninefold").json()["concurrency_limit"] == 1


def a_schedule_fires_and_a_worker_finishes(lab: Lab) -> None:
    runs = {"state": {"type": {"any_": ["RUNNING", "COMPLETED"]}}, "tags": {"all_": ["nightly"]}}
    scheduled = lab.until(lambda: lab.post("/flow_runs/filter", {"flow_runs": runs}))[0]["id"]
    deployment = lab.deployments()["nightly"]
    schedule = f"/deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    # 503: the database is busy, come again
    lab.until(lambda: lab.api.patch(schedule, json={"active": False}).is_success)
    lab.ended(scheduled, "COMPLETED")
    assert "auto-scheduled" in lab.run(scheduled)["tags"]
    done = "✔ arm 2 of 2 is done: ablation.random.queries-10.s0, "
    lab.until(lambda: any(line.startswith(done) for line in lab.said(scheduled)))  # lines follow the state
    plan = "sweep      ablation: 2 arms"
    assert any(plan in line for line in lab.said(scheduled)), "the plan, before money is spent"
    artifacts = lab.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [scheduled]}}})
    assert {of["key"]: of["type"] for of in artifacts} == {
        "sweep-ablation": "table",
        "sweep-ablation-curves": "image",
        "sweep-ablation-mlflow": "markdown",
    }
    assert lab.report("ablation.random.queries-10.s0")["queries"] == 10
    curves = next(of["id"] for of in artifacts if of["type"] == "image")
    with browser() as page:
        prefect_page(page, f"http://127.0.0.1:{lab.ports[1]}/artifacts/artifact/{curves}", lab.password)
        page.wait_for_function("[...document.images].some(image => image.naturalWidth > 1000)")
    link = next(of["data"] for of in artifacts if of["type"] == "markdown")
    assert f"http://127.0.0.1:{lab.ports[0]}/#/experiments/" in link, "the port that MLflow is at"


def a_failed_run_is_retried_where_it_failed(lab: Lab) -> None:
    with LoopbackJudge(key="another") as judge:
        run = lab.start(experiment=judged(lab, judge))
        lab.ended(run, "FAILED")
        assert "refused the call with 401" in lab.run(run)["state"]["message"]
        judge.key = None  # the account is mended
        lab.prefect("flow-run", "retry", run)
        lab.ended(run, "COMPLETED", count=2)
        first = lab.report("judged")
        assert_only_from(first, "annotate")
        assert judge.served["reply"] == len(bought(lab)) <= first["queries"] + first["evaluation_queries"]

        judge.key = "another"
        (lab.folder / "judged.yaml").write_text(yaml.safe_dump(judged(lab, judge)))
        sweep = {"name": "pair", "base": "judged.yaml", "presets": ["random"], "seeds": [1]}
        run = lab.start("sweep", sweep=sweep | {"max_micro_usd": 10_000_000})
        failed = lab.ended(run, "FAILED")
        assert "Missing: pair.random.s1" in failed["state"]["message"]
        judge.key = None
        with browser() as page:
            prefect_page(page, f"http://127.0.0.1:{lab.ports[1]}/runs/flow-run/{run}", lab.password)
            page.get_by_role("button", name="Retry").click()
            page.get_by_role("dialog").get_by_role("button", name="Retry").click()
            lab.ended(run, "COMPLETED", count=2)
        assert_only_from(lab.report("pair.random.s1"), "annotate")
        assert judge.served["reply"] == len(bought(lab)), "no label is bought twice, whoever retries"


def what_a_stopped_worker_leaves_goes_on(lab: Lab) -> None:
    with LoopbackJudge(latency=1.0) as judge:
        run = lab.start(experiment=judged(lab, judge, seed=2))
        lab.until(lambda: judge.log)
        assert "stopped" in lab.command("flows.cli.main", "down")
        assert not any(port_taken(port) for port in lab.ports)
        assert not [p for p in psutil.process_iter(["environ"]) if home_of(p) == str(lab.home)], "no process is left"
        assert "nothing is up" in lab.command("flows.cli.main", "down")
        judge.latency = 0.0
        lab.up()
        assert lab.run(run)["state_type"] == "CRASHED"
        assert lab.deployments()["nightly"]["schedules"][0]["active"] is False, "as it was left, whatever the file says"
        lab.prefect("flow-run", "retry", run)
        lab.ended(run, "COMPLETED", count=2)
    report = lab.report("judged")
    assert report["budget_audit"]["agree"] is True
    assert_only_from(report, "annotate")


def what_a_killed_keeper_leaves_is_ended(lab: Lab) -> None:
    with LoopbackJudge(latency=60.0) as judge:
        run = lab.start(experiment=judged(lab, judge, seed=3))
        lab.until(lambda: judge.log)
        found = json.loads((lab.home / "servers.json").read_text())
        assert {process.pid for process in of_run(run)} <= set(pids_of(found)), "recorded as it runs"
        worker = next(p for p in map(psutil.Process, pids_of(found)) if "worker" in p.cmdline())
        worker.kill()
        lab.until(lambda: not (lab.home / "servers.json").exists())
        assert not of_run(run), "a run whose worker died would be computed twice"
    lab.up()
    os.kill(json.loads((lab.home / "servers.json").read_text())["keeper"][0], signal.SIGKILL)
    assert "stopped" in lab.command("flows.cli.main", "down")
    assert not any(port_taken(port) for port in lab.ports)
    assert not [p for p in psutil.process_iter(["environ"]) if home_of(p) == str(lab.home)], "no process is left"


def assert_that_no_other_page_may_use_it(lab: Lab) -> None:
    """Any page in a browser could ask the server on loopback to run commands otherwise."""
    deployment = {"name": "x", "flow_id": str(uuid4()), "pull_steps": []}
    foreign = httpx.post(f"{lab.api.base_url}/deployments/", json=deployment, headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    assert "access-control-allow-origin" not in foreign.headers
    unknown = httpx.get(f"{lab.api.base_url}/admin/version", headers={"Origin": "http://evil.example"})
    assert unknown.status_code == 401
    assert stat.S_IMODE((lab.home / "servers.json").stat().st_mode) == 0o600, "it holds the password"


def bought(lab: Lab) -> list[Any]:
    rows = Ledger(f"sqlite:///{lab.home / 'ledger.sqlite'}").rows(status="labelled")
    return [row for row in rows if row["oracle"].startswith("llm_judge")]


def judged(lab: Lab, judge: LoopbackJudge, seed: int = 0) -> dict[str, Any]:
    experiment: dict[str, Any] = yaml.safe_load((lab.folder / "tiny.yaml").read_text())
    prices = {"input": 1_000_000, "output": 2_000_000, "cached": 500_000}
    endpoint = {"model": "judge", "base_url": judge.url, "api_key_env": "NINEFOLD_TEST_KEY", "prices": prices}
    experiment["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": endpoint}, "max_micro_usd": 200_000}
    experiment["labelling"]["acquisition"] = {"kind": "random"}
    return experiment | {"name": "judged", "seeds": {"training": 7 + seed}}


def assert_only_from(report: dict[str, Any], stage: str) -> None:
    """What the failed stage needs comes from the cache; it and what follows it is executed."""
    stages = [(of["name"], of["cached"]) for of in report["stages"]]
    first = [name for name, _ in stages].index(stage)
    assert all(cached for _, cached in stages[:first]), stages
    assert not any(cached for _, cached in stages[first:]), stages


def pids_of(recorded: dict[str, Any]) -> list[int]:
    return [pid for pid, _ in recorded["children"]]


def of_run(run: str) -> list[psutil.Process]:
    """Return the processes that compute a flow run."""
    key = "PREFECT__FLOW_RUN_ID"
    return [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(key) == run]


def home_of(process: psutil.Process) -> str | None:
    of = process.info["environ"]
    return of.get("NINEFOLD_HOME") if of else None


def test_the_shipped_deployments_name_what_there_is() -> None:
    shipped = yaml.safe_load(SHIPPED.read_text())
    for deployment in shipped["deployments"]:
        for file in deployment["parameters"].values():
            assert (ROOT / file).is_file()
    assert Servers((1, 0.0), 2, 3).api == "http://127.0.0.1:3/api"
