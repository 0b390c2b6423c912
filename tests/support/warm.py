"""Commands in processes of their own that begin with the large libraries imported: half of what a command takes otherwise.

A server that has imported them, and computed nothing, is forked for each command (`multiprocessing` calls it a fork server).
The process is a real one: its number, signals, streams, working directory and environment are its own. Prefect, which reads
its settings when it is imported, and the project's own packages are imported by the command itself. Where an environment
sets what the libraries may have read, the command begins from nothing instead.
"""

import atexit
import gc
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from signal import Signals

from tests.support.isolation import SESSION, become

LIBRARIES = (
    *("pandas", "pyarrow", "sqlalchemy", "sklearn.linear_model", "scipy.stats", "matplotlib.pyplot", "faiss"),
    *("torch", "transformers", "datasets", "accelerate", "peft", "trl", "sentence_transformers"),
    *(
        "trl.trainer.sft_trainer",
        "trl.trainer.dpo_trainer",
        "mlflow.store.tracking.sqlalchemy_store",
        "alembic",
        "PIL.Image",
    ),
    *("griffe", "graphviz", "httpcore", "pendulum", "websockets", "jsonschema", "prometheus_client"),  # Prefect's
    *("mlflow", "openai", "aiohttp", "httpx", "pydantic_settings", "typer", "rich.logging", "rich.table", "yaml"),
)
_READ_LATE = (
    *("NINEFOLD_", "PREFECT_", "AWS_", "RAY_", "PYTHON", "PYTEST_", "COLUMNS", "PATH", "PWD", "OLDPWD", "SHLVL", "_"),
    *("API", "LEDGER", "HF_TOKEN"),  # the tests' own, and a key
)
_OWN = ("TORCHINDUCTOR_", "KMP_", "TRL_")  # libraries set them in the process that imports them, and read them anew
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(LIBRARIES))


class Command:
    """A module that runs as `python -m` runs it, and is used as subprocess.Popen is; its streams go to files."""

    def __init__(
        self, module: Sequence[str], *, cwd: Path, env: Mapping[str, str], out: Path, err: Path, session: bool = False
    ) -> None:
        sys.audit("subprocess.Popen", sys.executable, list(module), str(cwd), env)
        given = list(module), str(cwd), dict(env), str(out), str(err), session
        self._process = _CONTEXT.Process(target=_run, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, how: Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, how)

    def kill(self) -> None:
        self.send_signal(Signals.SIGKILL)


def begins_warm(env: Mapping[str, str]) -> bool:
    """Whether an environment is, but for what is read late, the session's, which is what the server is begun with."""
    _begin_server()
    return _early(env) == _early(SESSION.environment)


@cache
def _begin_server() -> None:
    now = dict(os.environ)  # a test's, which may have a home or settings of its own
    try:
        become({name: value for name, value in SESSION.environment.items() if name != "NINEFOLD_HOME"})
        forkserver.ensure_running()
    finally:
        become(now)


def _early(env: Mapping[str, str]) -> dict[str, str]:
    late = (*_READ_LATE, *_OWN)
    return {name: value for name, value in env.items() if not name.startswith(late) and not name.endswith("_KEY")}


def _run(module: list[str], cwd: str, env: dict[str, str], out: str, err: str, session: bool) -> None:
    """Become a command: in the process that was forked for it, and for good."""
    gc.freeze()  # the libraries' objects, which no collection need look at
    if session:
        os.setsid()
    for path, stream in ((out, 1), (err, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, stream)
        os.close(opened)
    become(env)
    os.chdir(cwd)
    installed = [place for place in sys.path if place.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *installed]
    sys.argv[:] = module
    if "PYTHONUNBUFFERED" in env:
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    status: object = 0
    try:
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    # as an interpreter ends; multiprocessing's own end leaves the functions out
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), os.getpid()]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.makefile().read()))
"""


@contextmanager
def program(name: str, module: str, folder: Path) -> Iterator[Path]:
    """Yield a folder for a shell's PATH with a program that runs a module warm; the folder's own path must be short."""
    address = folder / f"{name}.socket"
    file = folder / "bin" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
    file.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        threading.Thread(target=_serve, args=(listener, module), daemon=True).start()
        try:
            yield file.parent
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            address.unlink()


def _serve(listener: socket.socket, module: str) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client, client.makefile("rw") as asked:
            arguments, cwd, env, pid = json.load(asked)
            out, err = (Path(f"/proc/{pid}/fd/{stream}") for stream in (1, 2))
            if begins_warm(env):
                command = Command([module, *arguments], cwd=Path(cwd), env=env, out=out, err=err)
                asked.write(str(command.wait()))
            else:
                with out.open("ab") as said, err.open("ab") as told:
                    cold = [sys.executable, "-m", module, *arguments]
                    asked.write(str(subprocess.run(cold, cwd=cwd, env=env, stdout=said, stderr=told).returncode))
