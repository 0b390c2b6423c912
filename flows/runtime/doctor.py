"""`ninefold doctor`: check versions, ports, disk and known-bad combinations, and name the remedy."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa
from packaging.requirements import Requirement

from flows.runtime.prefect_server import of_commands
from flows.runtime.servers import port_taken, servers
from models.core.errors import ConfigError
from models.core.external import load_plugins
from models.ledger.journal import waiting_in
from models.policies.resolve import PACKAGED, check_reference
from tasks.engine.ray_cluster import check_cluster
from tasks.engine.settings import settings

_DISK_GB = 4


class Finding(NamedTuple):
    """One check: what was looked at, whether it is well, and what to do if not."""

    what: str
    ok: bool
    remedy: str = ""


def examine() -> list[Finding]:
    """Return every check, bad ones included; changes nothing."""
    return [
        Finding(
            f"Python {platform.python_version()}",
            platform.python_version_tuple()[:2] >= ("3", "11"),
            "use 3.11+",
        ),
        *_packages(),
        *_plugins(),
        _packaged_model(),
        _disk(settings().home),
        *_ports(),
        *_commands(),
        *_journals(),
        *_sharing(),
        *_cluster(),
        busy(os.getloadavg()[0], os.cpu_count() or 1),
    ]


def _plugins() -> list[Finding]:
    """The packages of other plugins, or what is wrong with one."""
    try:
        return [Finding(f"plugins of {whose}", True) for whose in load_plugins()]
    except ConfigError as error:
        return [Finding(str(error), False, "then ninefold doctor again")]


def busy(load: float, cores: int) -> Finding:
    """Say whether other work keeps the cores busy, and what that costs: it is no fault."""
    if load < cores / 2:
        return Finding("no other work keeps the cores busy", True)
    return Finding(
        f"other work keeps {min(load, cores):.1f} of {cores} cores busy: a run takes up to twice as long beside it",
        True,
    )


def _ports() -> list[Finding]:
    if (up := servers()) is not None:
        return [Finding(f"MLflow at port {up.mlflow_port}, Prefect at {up.prefect_port} (ninefold up)", True)]
    return [
        Finding(f"port {port} for {name} is free", not port_taken(port), f"ninefold up --{name}-port ANOTHER")
        for name, port in (("mlflow", settings().mlflow_port), ("prefect", settings().prefect_port))
        if name != "mlflow" or not settings().mlflow_is_remote
    ]


def _commands() -> list[Finding]:
    """The Prefect servers of commands that run now, or that a killed one has left."""
    return [
        Finding(
            f"Prefect server {server.pid} is of command {server.owner[0]}{'' if server.used else ', which is no more'}",
            server.used,
            "ninefold down",
        )
        for server in of_commands(settings().prefect_home)
    ]


def _sharing() -> list[Finding]:
    """Whether what other machines see is enough for them to work together."""
    if not settings().shares_store:
        return []
    what = f"the store is shared ({settings().store_url}), and so"
    ledger = Finding(
        f"{what} is the ledger",
        settings().shares_stages,
        "set NINEFOLD_LEDGER_URL=postgresql+psycopg://…: two would buy twice",
    )
    mlflow = Finding(
        f"{what} is MLflow", settings().shares_mlflow, "set NINEFOLD_MLFLOW_URI to a server or a PostgreSQL database"
    )
    return [ledger, mlflow, *_old_places(what)]


def _journals() -> list[Finding]:
    """Whether something waits to be booked that the ledger could not take when it came."""
    folder = settings().journal
    waiting = [*waiting_in(folder), *sorted(folder.glob("*.unreadable"))]
    if not waiting:
        return []
    named = ", ".join(file.name for file in waiting)
    remedy = "the next run books it (an .unreadable file is for you to look at)"
    return [Finding(f"{folder} holds nothing that the ledger lacks: {named}", False, remedy)]


def _cluster() -> list[Finding]:
    """Whether the Ray cluster that is named is there, and its nodes see what this machine sees."""
    if settings().ray_address is None:
        return []
    try:
        return [Finding(f"shards are computed {check_cluster(gpus=1)}", True)]
    except ValueError as error:
        return [Finding(f"a Ray cluster answers at {settings().ray_address}", False, str(error))]


def _old_places(what: str) -> list[Finding]:
    """Whether MLflow's database knows experiments whose artifacts lie on one machine: it keeps what it was first told."""
    if settings().mlflow_is_remote or not settings().shares_mlflow:
        return []
    known = sa.text("SELECT name, artifact_location FROM experiments WHERE name LIKE 'ninefold%' ORDER BY name")
    try:
        with sa.create_engine(settings().mlflow_uri, poolclass=sa.NullPool).connect() as connection:
            places = connection.execute(known).all()
    except sa.exc.OperationalError as error:
        return [Finding(f"{what} is MLflow's database", False, " ".join(str(error.orig).split()))]
    except sa.exc.ProgrammingError:  # it has no tables yet
        return []
    local = [f"{name} ({place})" for name, place in places if place.startswith(("file:", "/"))]
    remedy = (
        f"artifacts of {', '.join(local)} stay there: rename them in MLflow, and new ones are made beside the store"
    )
    return [Finding(f"{what} are the artifacts of MLflow's experiments", not local, remedy)]


def _packages() -> list[Finding]:
    findings = []
    for text in requires("ninefold") or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            findings.append(Finding(f"{requirement.name} is missing", False, "make setup"))
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        remedy = f"pip install '{wanted}'"
        if requirement.name == "fastapi":
            remedy += " (Prefect's server dies at import on newer ones)"
        findings.append(
            Finding(f"{requirement.name} {found}", requirement.specifier.contains(found, prereleases=True), remedy)
        )
    return findings


def _packaged_model() -> Finding:
    try:
        check_reference(PACKAGED)
    except FileNotFoundError as error:
        return Finding(f"packaged model {PACKAGED}", False, str(error))
    return Finding(f"packaged model {PACKAGED}", True)


def _disk(home: Path) -> Finding:
    place = home.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    return Finding(f"{free:.0f} GB free at {place}", free >= _DISK_GB, f"free {_DISK_GB} GB or set NINEFOLD_HOME")
