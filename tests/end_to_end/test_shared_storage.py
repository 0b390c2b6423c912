"""One experiment on many machines: object store, PostgreSQL and Prefect's server shared by URL, homes that share no disk."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from models.ledger.ledger import Ledger
from tests.support.fake_judge import LoopbackJudge
from tests.support.postgres import Postgres
from tests.support.processes import KEY, ROOT, begin, ninefold, until, with_prefect, without_prefect


def report_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "reports/tiny/report.json").read_text())
    return found


def picks_of(home: Path) -> list[str]:
    return list(pd.read_parquet(home / "reports/tiny/acquisition.parquet").response_id)


@pytest.mark.usefixtures("prefect_server")
def test_another_machine_finds_every_stage_and_buys_nothing(
    judged: Path,
    server: LoopbackJudge,
    shared: dict[str, str],
    tmp_path: Path,
    s3: str,
    postgres: Postgres,
    prefect_database: str,
) -> None:
    embedded, first, second = (tmp_path / name for name in ("embedded", "first", "second"))
    alone = ninefold("run", str(judged), home=embedded, environment=with_prefect() | {"NINEFOLD_TEST_KEY": KEY})
    assert alone.returncode == 0, alone.stderr
    calls = server.served["reply"]
    done = ninefold("run", str(judged), home=first, environment=shared)
    assert done.returncode == 0, done.stderr
    assert server.served["reply"] == 2 * calls, "another ledger, another purchase"
    assert picks_of(first) == picks_of(embedded)
    assert report_of(first)["policy"] == report_of(embedded)["policy"], "where it is kept changes nothing"

    again = ninefold("run", str(judged), home=second, environment=shared)
    assert again.returncode == 0, again.stderr
    assert server.served["reply"] == 2 * calls
    assert all(stage["cached"] for stage in report_of(second)["stages"])
    assert picks_of(second) == picks_of(first)
    assert not [f for f in (first / "store", second / "store", second / "ledger.sqlite") if f.exists()]
    doctor = ninefold("doctor", home=second, environment=shared)
    assert f"ok  the store is shared ({s3}), and so is the ledger" in doctor.stdout
    assert f"ok  the store is shared ({s3}), and so are the artifacts of MLflow's experiments" in doctor.stdout
    lonely = ninefold("doctor", home=second, environment=shared | {"NINEFOLD_LEDGER_URL": "sqlite:///alone.sqlite"})
    assert "and so is the ledger — set NINEFOLD_LEDGER_URL=postgresql+psycopg://" in lonely.stdout
    rows = list(Ledger(shared["LEDGER"]).rows())
    assert len({(row["prompt"], row["response"]) for row in rows}) == len(rows), "each question once"

    import boto3

    bucket = boto3.client("s3")
    listed = bucket.list_objects_v2(Bucket="ninefold", Prefix=s3.removeprefix("s3://ninefold/"))
    folders = {item["Key"].split("/")[1] for item in listed["Contents"]}
    assert {"results", "responses", "labels", "mlflow"} <= folders
    secrets = KEY, os.environ["AWS_SECRET_ACCESS_KEY"]
    written = [f for place in (first, second, tmp_path / "prefect-server") for f in place.rglob("*") if f.is_file()]
    places = dict(line.split("=", 1) for line in Path(shared["NINEFOLD_SETTINGS"]).read_text().splitlines())
    others = [sa.make_url(places[f"NINEFOLD_{name}"]).database or "" for name in ("LEDGER_URL", "MLFLOW_URI")]
    held = b"".join(postgres.dump(database) for database in (prefect_database, *others))
    held += b"".join(f.read_bytes() for f in [*written, tmp_path / "prefect.log"])
    held += b"".join(
        bucket.get_object(Bucket="ninefold", Key=item["Key"])["Body"].read() for item in listed["Contents"]
    )
    said = "".join(run.stdout + run.stderr for run in (done, again, doctor))
    assert b"ninefold-" in held, "what is searched does hold the block of the results"
    assert not [secret for secret in secrets if secret.encode() in held or secret in said]


def test_a_machine_that_dies_is_taken_over_and_nothing_is_bought_twice(
    judged: Path, server: LoopbackJudge, shared: dict[str, str], tmp_path: Path
) -> None:
    server.latency = 0.5
    first, second, later = (tmp_path / name for name in ("first", "second", "later"))
    command = ["flows.cli.main", "run", str(judged)]
    for home in (first, second):
        home.mkdir()
    running = [
        begin(*command, environment=shared | {"NINEFOLD_HOME": str(home)}, cwd=ROOT, out=home / "log", session=True)
        for home in (first, second)
    ]
    try:
        until(lambda: server.served["reply"] >= 3, log=tmp_path / "prefect.log", seconds=200)
        buying = Ledger(shared["LEDGER"])
        holder = next(row["holder"] for row in buying.rows() if row["holder"])
        killed = next(process for process in running if f"|{process.pid}|" in holder)
        os.killpg(killed.pid, signal.SIGKILL)
        (other,) = [process for process in running if process is not killed]
        assert other.wait(200) == 0, "".join((home / "log").read_text()[-3000:] for home in (first, second))
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    server.latency = 0.0
    done = ninefold("run", str(judged), home=later, environment=shared)
    assert done.returncode == 0, done.stderr
    assert all(stage["cached"] for stage in report_of(later)["stages"]), "all was finished by the one that lived"
    rows = list(buying.rows())
    settled = [(row["prompt"], row["response"]) for row in rows if row["status"] == "labelled"]
    assert len(set(settled)) == len(settled), "no question has two labels"
    lost = sum(row["status"] == "lost" for row in rows)
    # what was on its way when it died may have been answered, and is booked as lost; all else was asked once
    assert len(settled) <= server.served["reply"] <= len(settled) + lost
    assert lost <= 5


def test_doctor_names_what_mlflow_has_kept_on_one_machine(
    new_database: Callable[[], str], s3: str, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    database = new_database()
    MlflowClient(database).create_experiment("ninefold", artifact_location="file:///home/somebody/mlflow")
    places = {"NINEFOLD_STORE_URL": s3, "NINEFOLD_LEDGER_URL": new_database(), "NINEFOLD_MLFLOW_URI": database}
    told = ninefold("doctor", home=tmp_path, environment=without_prefect() | places)
    assert told.returncode == 1
    assert "artifacts of ninefold (file:///home/somebody/mlflow) stay there: rename them in MLflow" in told.stdout


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    refused = ninefold("plan", "x.yaml", home=tmp_path, environment=without_prefect() | {"NINEFOLD_SETTINGS": "no.env"})
    assert refused.returncode == 2
    assert "NINEFOLD_SETTINGS=no.env does not exist: name a file of lines such as" in refused.stderr
    (tmp_path / "typo.env").write_text("NINEFOLD_LEGDER=postgresql://x\n")
    typo = without_prefect() | {"NINEFOLD_SETTINGS": str(tmp_path / "typo.env")}
    refused = ninefold("plan", "x.yaml", home=tmp_path, environment=typo)
    assert "sets NINEFOLD_LEGDER, and there are NINEFOLD_" in refused.stderr
    assert "NINEFOLD_LEDGER_URL, " in refused.stderr
