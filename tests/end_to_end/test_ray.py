"""A Ray cluster of two nodes, each with a home of its own, does the work of a run, though one of them is lost."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd
import psutil
import pytest
import ray
import yaml
from prefect import flow

from models.core.data import Prompt, Response
from models.generators.vllm import VLLM
from models.policies.resolve import locate
from tasks.engine.ray_cluster import cancel_all, check_cluster
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store
from tasks.policy.generate import generate_sharded
from tasks.policy.policy_ref import Policy
from tests.support.plugins import EXAMPLE, install
from tests.support.processes import ROOT, Command, begin, free_port, ninefold, until, with_prefect, without_prefect

RAY = str(Path(sys.executable).with_name("ray"))


def node(folder: Path, environment: dict[str, str], gpus: int, *where: str) -> psutil.Process:
    """Start a node of one processor, and the GPUs that Ray is told of; it keeps all in its folder and in the store."""
    folder.mkdir()
    own = environment | {"NINEFOLD_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    own["RAY_health_check_period_ms"] = "500"  # a node that does not answer five times is lost: else 15 s
    command = [
        RAY,
        "start",
        *where,
        "--num-cpus",
        "1",
        "--num-gpus",
        str(gpus),
        "--object-store-memory",
        "80000000",
        "--block",
    ]
    with (folder / "log").open("w") as log:
        return psutil.Process(
            subprocess.Popen(
                command, cwd=folder, env=own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            ).pid
        )


def kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # killed already
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait(30)


@contextmanager
def cluster(
    folder: Path, environments: list[dict[str, str]], gpus: int = 0
) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Yield the address of a cluster of as many nodes, and their processes; they listen on 127.0.0.1 alone."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    at = ["--node-ip-address", "127.0.0.1"]
    head = ["--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", f"/tmp/ray-{os.getpid()}"]
    nodes = [node(folder / "head", environments[0], gpus, *head, *at)]
    try:
        until(lambda: "Ray runtime started" in (folder / "head/log").read_text(), log=folder / "head/log", seconds=120)
        for number, environment in enumerate(environments[1:], start=1):
            place = folder / f"node{number}"
            nodes.append(node(place, environment, gpus, "--address", address, *at))
            until(lambda: "Ray runtime started" in (place / "log").read_text(), log=place / "log", seconds=120)  # noqa: B023
        yield address, nodes
    finally:
        for one in reversed(nodes):
            kill(one)


def found(home: Path) -> dict[str, Any]:
    report = json.loads((home / "reports/tiny/report.json").read_text())
    picks = list(pd.read_parquet(home / "reports/tiny/acquisition.parquet").response_id)
    return {key: report[key] for key in ("queries", "micro_usd", "pairs", "evaluator", "policy")} | {"picks": picks}


def works(process: psutil.Process) -> bool:
    """Whether a node is at work on a shard of generation."""
    return any("ray::sample" in " ".join(child.cmdline()) for child in process.children(recursive=True))


@pytest.fixture
def machine(
    prefect_server: None, s3: str, tmp_path: Path, tiny_settings: dict[str, Any]
) -> Callable[..., "Command | subprocess.Popen[bytes]"]:
    """Return how to start a command on a machine of its own that shares the store."""
    site = install(EXAMPLE, tmp_path / "site")  # another package's strategy, which every node must have
    tiny_settings["labelling"]["acquisition"] = {"kind": "my_lab/longest"}
    tiny_settings["evaluator"] = {"kind": "reward_head", "ensemble": 2, "training": tiny_settings["dpo"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings))

    def start(home: Path, **more: str) -> "Command | subprocess.Popen[bytes]":
        environment = with_prefect() | {"NINEFOLD_HOME": str(home), "NINEFOLD_STORE_URL": f"{s3}/{home.name}"}
        environment |= {"NINEFOLD_SHARD_SIZE": "16", "OMP_NUM_THREADS": "1", "COLUMNS": "160", **more}
        environment |= {"PYTHONPATH": str(site)}
        home.mkdir()
        command = ["flows.cli.main", "run", str(tmp_path / "tiny.yaml")]
        return begin(*command, environment=environment, cwd=ROOT, out=home / "log")

    return start


def test_a_cluster_finds_what_one_machine_finds_though_a_node_is_lost(
    machine: Callable[..., "Command | subprocess.Popen[bytes]"], s3: str, tmp_path: Path
) -> None:
    assert machine(tmp_path / "alone").wait(300) == 0, (tmp_path / "alone/log").read_text()[-4000:]
    shared = without_prefect() | {"NINEFOLD_STORE_URL": f"{s3}/driver", "PYTHONPATH": str(tmp_path / "site")}
    with cluster(tmp_path, [shared, shared]) as (address, nodes):
        run = machine(tmp_path / "driver", NINEFOLD_RAY_ADDRESS=address)
        log = tmp_path / "driver/log"
        try:
            until(lambda: works(nodes[1]) or run.poll() is not None, log=log, seconds=120)
            kill(nodes[1])
            assert run.wait(300) == 0, log.read_text()[-6000:]
        finally:
            run.kill()
    assert found(tmp_path / "driver") == found(tmp_path / "alone")
    assert f"in 5, of 16 and more, on the Ray cluster at {address}: 2 nodes, room for 2 at once" in log.read_text()
    assert list((tmp_path / "head/home").iterdir()), "the nodes did the work"


@flow
def sampled(policy: Policy, prompts: Ref, generator: VLLM) -> list[str]:
    made = generate_sharded(policy, prompts, generator, samples=2, seed=5)
    return [response.id for response in store().rows(made.ref, Response)]


@pytest.mark.usefixtures("prefect_server")
def test_vllm_answers_on_the_nodes_and_only_the_shard_of_a_lost_one_again(
    home: Path, tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, command = tmp_path / "starts", tmp_path / "vllm"
    stand_in = shlex.join([sys.executable, str(ROOT / "tests/support/fake_vllm.py")])
    command.write_text(f'#!/bin/sh\necho started >> {shlex.quote(str(starts))}\nexec {stand_in} "$@"\n')
    command.chmod(0o755)
    policy = Policy(
        model=str(tiny_model_path), weights=locate(str(tiny_model_path)).digest, dtype="float32", template="plain"
    )
    prompts = store().write_rows("prompts", [Prompt.of(f"the film number {n} is") for n in range(10)], Prompt)
    generator = VLLM(temperature=1.0, max_new_tokens=8)
    monkeypatch.setenv("NINEFOLD_VLLM", str(command))
    here = sampled(policy, prompts, generator)
    assert starts.read_text().split() == ["started"]

    place = without_prefect() | {"NINEFOLD_STORE_URL": settings().store_url, "NINEFOLD_VLLM": str(command)}
    monkeypatch.delenv("NINEFOLD_VLLM")
    with cluster(tmp_path, [place, place], gpus=1) as (address, nodes):
        monkeypatch.setenv("NINEFOLD_RAY_ADDRESS", address)
        monkeypatch.setenv("NINEFOLD_SHARD_SIZE", "8")  # of four prompts
        settings.cache_clear()

        def serves() -> bool:
            """Whether the lost node's server has been started, and not only whoever watches over it."""
            with suppress(psutil.NoSuchProcess):
                return any(stand_in in shlex.join(c.cmdline()) for c in nodes[1].children(recursive=True))
            return False

        def loses_one() -> None:
            until(serves, log=log, seconds=120)
            kill(nodes[1])

        log = tmp_path / "node1/log"
        losing = Thread(target=loses_one)
        try:
            away = command.rename(tmp_path / "away")
            with pytest.raises(ValueError, match=r"Ray node .*: generation.kind=vllm: vLLM's command is not at"):
                check_cluster(generator.gpus, generator.check)
            away.rename(command)
            assert "2 nodes, room for 2 at once" in check_cluster(generator.gpus, generator.check)
            with pytest.raises(ValueError, match="no node of the Ray cluster .* has the 1 processors and 2 GPUs"):
                check_cluster(VLLM(tensor_parallel=2).gpus)
            losing.start()
            assert sampled(policy, prompts, generator) == here
        finally:
            if losing.ident:
                losing.join()
            cancel_all()
            ray.shutdown()
            settings.cache_clear()
    assert len(starts.read_text().split()) == 1 + 3 + 1, "three shards, and the lost one's again"


def test_a_node_that_sees_another_store_is_named_before_anything_is_bought(
    machine: Callable[..., "Command | subprocess.Popen[bytes]"], s3: str, tmp_path: Path
) -> None:
    with cluster(tmp_path, [without_prefect() | {"NINEFOLD_STORE_URL": f"{s3}/another"}]) as (address, _):
        refused = machine(tmp_path / "driver", NINEFOLD_RAY_ADDRESS=address)
        assert refused.wait(120) == 2
    said = (tmp_path / "driver/log").read_text()
    assert f"keeps its artifacts in {s3}/another" in " ".join(said.split())
    assert not (tmp_path / "driver/ledger.sqlite").exists()
    gone = ninefold(
        "doctor", home=tmp_path / "later", environment=without_prefect() | {"NINEFOLD_RAY_ADDRESS": address}
    )
    assert gone.returncode == 1
    assert "no Ray cluster answers there" in " ".join(gone.stdout.split())


def test_the_client_of_ray_is_refused_with_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_RAY_ADDRESS", "ray://10.0.0.1:10001")
    settings.cache_clear()
    with pytest.raises(ValueError, match="Ray's client is not used here: make this machine a node"):
        check_cluster(1)
    settings.cache_clear()
