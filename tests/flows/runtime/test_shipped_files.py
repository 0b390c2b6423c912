"""What is shipped to run elsewhere: compose.yaml's services, run here without containers, and Kubernetes' jobs, rendered."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from models.ledger.ledger import Ledger
from tests.support.fake_judge import LoopbackJudge
from tests.support.postgres import Postgres, running
from tests.support.processes import KEY, ROOT, finished, free_port, until, without_prefect

DEPLOYMENTS = ROOT / "deployments"
SECRETS = {
    "POSTGRES_PASSWORD": "planted-postgres",
    "LEDGER_PASSWORD": "planted-ledger",
    "LEDGER_OWNER_PASSWORD": "planted'owner",
    "PREFECT_PASSWORD": "planted-prefect",
    "MLFLOW_PASSWORD": "planted-mlflow",
    "PREFECT_AUTH": "lab:planted-pages",
    "S3_ACCESS_KEY": "planted-s3-id",
    "S3_SECRET_KEY": "planted-s3-secret",
}


def filled(value: Any, environment: dict[str, str]) -> Any:
    """Return a compose file's value with its variables, as compose fills them in."""
    if isinstance(value, dict):
        return {name: filled(entry, environment) for name, entry in value.items()}
    if isinstance(value, list):
        return [filled(entry, environment) for entry in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, rule, rest = match.groups()
        given = environment.get(name, "")
        assert given or rule != ":?", f"{name}: {rest}"
        return given or rest

    return re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", replace, value)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "docker" / "compose.yaml").read_text())
    return found


def test_every_service_is_watched_limited_and_kept_to_this_machine(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert name == "init-storage" or service["healthcheck"]["test"][0] == "CMD", name
        ports = service.get("ports", [])
        assert name == "proxy" or all(port.startswith("127.0.0.1:") for port in ports), name
        assert not service["image"].endswith(":latest"), name
    public = [name for name, service in compose["services"].items() if service.get("ports")]
    assert public == ["prefect", "mlflow", "proxy"], (
        "neither the database nor the object store can be reached from outside"
    )


def test_secrets_come_from_the_environment_and_none_has_a_default(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN|AUTH", name) and name not in (
                "PAGES_PASSWORD_HASH",
                "RAY_AUTH_MODE",
            ):
                assert re.fullmatch(r"\$\{\w+(:\?[^}]+|:-)\}", value), f"{name}={value}"
    for secret in SECRETS:
        with pytest.raises(AssertionError, match=f"{secret}: set it in deployments/docker/.env"):
            filled(compose["services"], {k: v for k, v in SECRETS.items() if k != secret})


class Host:
    """This machine in a compose project's place: its own PostgreSQL and S3, and free ports."""

    def __init__(self, folder: Path, compose: dict[str, Any], postgres: Postgres) -> None:
        self.folder, self.services = folder, filled(compose["services"], SECRETS | {"OPENAI_API_KEY": KEY})
        self.ports = {"4200": free_port(), "5000": free_port(), "8080": free_port()}
        self.postgres = postgres

    def here(self, text: str) -> str:
        """Return a text with this machine's places for the project's."""
        text = text.replace("postgres:5432", f"127.0.0.1:{self.postgres.port}").replace(
            "planted'owner", "planted%27owner"
        )
        text = text.replace("http://objects:8333", os.environ["AWS_ENDPOINT_URL"]).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"\b(prefect|mlflow):(?=\d)", "127.0.0.1:", text).replace("/srv/ninefold/files", str(self.folder))
        return re.sub(r"\b(4200|5000|8080)\b", lambda match: str(self.ports[match[0]]), text)

    def environment(self, service: str) -> dict[str, str]:
        given = {name: self.here(value) for name, value in self.services[service].get("environment", {}).items()}
        base = {name: value for name, value in without_prefect().items() if not name.startswith("AWS_")}
        mine = {"NINEFOLD_HOME": str(self.folder / f"home-{service}"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return base | mine | given | {"PREFECT_HOME": str(self.folder / service), "PREFECT_WORKER_QUERY_SECONDS": "1"}

    def words(self, words: list[str]) -> list[str]:
        program, *rest = (self.here(word) for word in words)
        return [{"ninefold": "flows.cli.main"}.get(program, program), *rest]

    def command(self, words: list[str]) -> list[str]:
        program, *rest = self.words(words)
        return [sys.executable, *([] if program == "python" else ["-m", program]), *rest]

    def run(self, service: str, *words: str) -> str:
        command = self.words(list(words) or self.services[service]["command"])
        done = finished(*command, environment=self.environment(service), cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def up(self, service: str) -> Iterator[Path]:
        """Run a service's command until the block ends; it begins when the service's own health check is content."""
        log = self.folder / f"{service}.log"
        check = self.command(self.services[service]["healthcheck"]["test"][1:])
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.command(self.services[service]["command"]),
                env=self.environment(service),
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            until(lambda: subprocess.run(check, capture_output=True).returncode == 0, log=log, seconds=200)
            yield log
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def host(tmp_path: Path, compose: dict[str, Any], s3_server: str) -> Iterator[Host]:
    with running() as postgres:  # roles are of a whole server
        yield Host(tmp_path, compose, postgres)


def test_the_services_work_together_with_the_roles_that_they_are_given(
    host: Host, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    host.postgres.script(DEPLOYMENTS / "docker" / "init-roles.sh", SECRETS)
    worker = host.environment("worker")["NINEFOLD_LEDGER_URL"]
    with pytest.raises(
        PermissionError, match="lacks tables or is .*, and ledger may not change that: `ninefold init-storage`"
    ):
        Ledger(worker)
    assert "store   s3://ninefold/store" in host.run("init-storage")
    host.run("init-storage")  # again, after an update

    with LoopbackJudge(key=KEY) as judge, ExitStack() as up:
        endpoint = {"model": "judge", "base_url": judge.url, "api_key_env": "OPENAI_API_KEY"}
        endpoint |= {"prices": {"input": 1_000_000, "output": 2_000_000}}
        host.services["worker"]["environment"]["NINEFOLD_ENDPOINTS"] = judge.url
        tiny_settings["policy"]["model"] = str(shutil.copytree(tiny_settings["policy"]["model"], tmp_path / "model"))
        tiny_settings["labelling"] |= {"oracle": {"kind": "llm_judge", "endpoint": endpoint}, "max_micro_usd": 200_000}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny_settings))
        sweep = {"name": "small", "base": "base.yaml", "presets": ["random"], "max_micro_usd": 100_000_000}
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(sweep))
        logs = [up.enter_context(host.up(service)) for service in ("prefect", "mlflow", "worker")]
        said = host.run("worker", "ninefold", "sweep", "small.yaml", "--workers")
        assert "arm 1 of 1 is done" in said
        assert "small.random.s0" in host.run("worker", "ninefold", "rerun", "small.random.s0"), (
            "MLflow kept the experiment"
        )
    assert judge.served["reply"], "the worker had the oracle's key"
    written = "".join(log.read_text() for log in logs) + said
    assert not [secret for secret in (*SECRETS.values(), KEY) if secret in written]

    engine = sa.create_engine(worker)
    for statement, rule in (
        ("DELETE FROM queries", r"query \d+ is labelled, and kept"),
        ("UPDATE queries SET status = 'reserved'", r"query \d+ is labelled, and stays so"),
        ("UPDATE queries SET settled_at = NULL", r"query \d+ is labelled, and kept"),
        ("DROP TABLE queries", "must be owner of table queries"),
        ("TRUNCATE queries CASCADE", "permission denied"),
        ("CREATE TABLE mine (x int)", "permission denied for schema public"),
    ):
        with pytest.raises(sa.exc.DBAPIError, match=rule), engine.begin() as connection:
            connection.exec_driver_sql(statement)
    for database in ("prefect", "mlflow", "postgres"):
        with pytest.raises(sa.exc.OperationalError, match="permission denied for database"):
            sa.create_engine(re.sub(r"/ledger$", f"/{database}", worker)).connect()


def test_the_image_holds_what_its_build_needs_and_nothing_more() -> None:
    dockerfile = (DEPLOYMENTS / "docker" / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"COPY .*? (\S.*) \S+$", dockerfile, re.M) for name in line.split()}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    assert {"deployments/docker/.env*", "deployments/docker/files"} <= set(ignored[ignored.index("!deployments") :]), (
        "no secrets in it"
    )
    assert {"flows", "tasks", "models", "pyproject.toml", "Makefile"} <= copied
    for target in ("cpu", "cuda"):
        assert f"RUN make setup TORCH={target} EXTRAS=" in dockerfile
        assert f"--target {target}" in dockerfile


@pytest.mark.usefixtures("prefect_server")
def test_kubernetes_jobs_hold_secrets_by_name_and_what_a_run_may_use() -> None:
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    template = json.loads((DEPLOYMENTS / "kubernetes" / "work-pool.json").read_text())
    with get_client(sync_client=True) as client:  # the server checks a template as well
        client.create_work_pool(WorkPoolCreate(name="k8s", type="kubernetes", base_job_template=template))
    rendering = KubernetesWorkerJobConfiguration.from_template_and_values(
        template, {"gpus": 1, "image": "ninefold:cuda", "command": "prefect flow-run execute"}
    )
    job: Any = asyncio.run(rendering)
    pod = job.job_manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "ninefold:cuda"
    assert container["envFrom"] == [{"secretRef": {"name": "ninefold"}}]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": 1}
    assert container["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    assert job.env["NINEFOLD_WORKER_FOLDER"] == "/srv/ninefold/files"
    assert job.env["NINEFOLD_FILES"].split(":")[0] == job.env["NINEFOLD_WORKER_FOLDER"], "and no other files"
    assert "{{" not in json.dumps(job.job_manifest), "nothing is left to fill in"
