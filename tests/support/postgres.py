"""A real PostgreSQL server beside the tests, of the system's packages, on a socket and a port of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from uuid import uuid4

import psycopg

from tests.support.processes import free_port


class Postgres:
    """A running server: at its socket every role is believed, at its port on 127.0.0.1 it needs a password."""

    def __init__(self, folder: Path, port: int, control: Callable[..., None]) -> None:
        self.folder, self.port, self._control = folder, port, control

    def start(self) -> None:
        settings = f"port={self.port} unix_socket_directories={self.folder} fsync=off max_connections=200"
        options = " ".join(f"-c {setting}" for setting in f"listen_addresses=127.0.0.1 {settings}".split())
        self._control("start", "--wait", "-o", options, "-l", str(self.folder / "log"))

    def stop(self, mode: str = "immediate") -> None:
        """End it, at once as when its machine fails, or politely (`fast`): what is not committed is gone."""
        self._control("stop", f"--mode={mode}")

    def url(self, database: str, *, role: str = "postgres", driver: str = "psycopg") -> str:
        """Return the SQLAlchemy URL of a database."""
        return f"postgresql+{driver}://{role}@/{database}?host={self.folder}&port={self.port}"

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database).replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement.encode())

    def script(self, file: Path, environment: dict[str, str]) -> None:
        """Run a shell script whose psql is a superuser's."""
        here = {"PGHOST": str(self.folder), "PGPORT": str(self.port), "POSTGRES_USER": "postgres"}
        done = subprocess.run(["sh", str(file)], env=os.environ | here | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def dump(self, database: str) -> bytes:
        """Return all that a database holds, as text."""
        command = [_program("pg_dump"), "--inserts", self.url(database).replace("+psycopg", "")]
        return subprocess.run(command, capture_output=True, check=True).stdout

    def new_database(self) -> str:
        """Make an empty database and return its name."""
        name = f"t{uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        return name


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server in a folder under the system's temporary one: a socket's path must be short, and root may run none."""
    folder = Path(tempfile.mkdtemp(prefix="ninefold-postgres-"))
    as_user: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data = folder / "data"

    def command(program: str, *arguments: str) -> None:
        done = subprocess.run([*as_user, _program(program), *arguments], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        command(
            "initdb", "--pgdata", str(data), "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256"
        )
        server = Postgres(folder, free_port(), lambda what, *more: command("pg_ctl", what, "-D", str(data), *more))
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str:
    """Return a server's program; Debian keeps them out of the path."""
    found = shutil.which(name) or max(glob(f"/usr/lib/postgresql/*/bin/{name}"), default=None)
    assert found, f"{name} is missing: make test installs PostgreSQL where it may; install your system's package of it"
    return found
