"""Keeps a session of tests apart from the user: from their environment, their cache, and the default home in the clone."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEFAULT_HOME = "artifacts"  # in the working directory
_CACHE = ROOT / ".pytest_cache" / "ninefold"  # kept between sessions: a converted model, Label Studio's environment
_MEMORY, _ROOM = "/dev/shm", 6 * 2**30  # bytes; a session has a few hundred megabytes at once
_DELIBERATE = {"NINEFOLD_VLLM"}  # whoever sets it asks for vLLM itself in the place of its stand-in
_PRODUCTS = ("NINEFOLD_", "PREFECT_", "MLFLOW_", "OPENAI_", "AWS_", "RAY_", "HF_", "LABEL_STUDIO_", "ACCELERATE_")
_SECRETS = ("_API_KEY", "_TOKEN")
_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Touched(AssertionError):
    """A test has touched what is the user's."""


class Session:
    """The folder and the environment of a session, and a guard over all that its process opens and starts.

    The guard is an audit hook: Python tells it of files before they are opened, and of processes with their environment. So
    it sees what a child's home would be. Asking whether a file exists is not told.
    """

    def __init__(self) -> None:
        if (memory := _in_memory()) is not None:
            os.environ["TMPDIR"] = tempfile.tempdir = memory
        self.folder = Path(tempfile.mkdtemp(prefix="ninefold-tests-"))
        self.touched: list[Touched] = []
        self._homes = {str(ROOT / DEFAULT_HOME), os.path.abspath(DEFAULT_HOME)}
        self._theirs = (*self._homes, str(Path.home() / ".cache" / "ninefold"))
        for name in theirs(os.environ):
            del os.environ[name]
        os.environ |= _QUIET | {
            "NINEFOLD_HOME": str(self.folder / "between-tests"),
            "NINEFOLD_CACHE": str(_CACHE),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "HF_HOME": str(self.folder / "hugging-face"),
        }
        self.environment = dict(os.environ)
        sys.addaudithook(self._told)

    def restore(self) -> None:
        """Take back what the environment has become since the session began."""
        become(self.environment)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def check(self) -> None:
        """Raise what was raised already, lest somebody has caught it."""
        if self.touched:
            raise self.touched.pop()

    def _told(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen":
            program, command, cwd, environment = args
            home = os.path.join(os.fspath(cwd or "."), _home(environment))
            if os.path.abspath(home) in self._homes and _may_be_ours(os.fsdecode(program)):
                self._refuse(f"the default home would be that of {command}: give it NINEFOLD_HOME")
        elif event in {"open", "sqlite3.connect", "os.mkdir", "os.listdir", "os.scandir", "os.rename", "os.remove"}:
            for named in (os.fsdecode(each) for each in args[:2] if isinstance(each, (str, bytes, os.PathLike))):
                # a name without a folder is what shutil.rmtree opens beside the descriptor of one
                if os.sep in named:
                    path = os.path.abspath(named.removeprefix("file:"))
                    if any(path == place or path.startswith(place + os.sep) for place in self._theirs):
                        self._refuse(f"{path} is the user's: {event}")

    def _refuse(self, why: str) -> None:
        self.touched.append(Touched(why))
        raise self.touched[-1]


def become(environment: Mapping[str, str]) -> None:
    """Make this process's environment another one."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _in_memory() -> str | None:
    """Return a folder in memory for what tests write, if there is room: a commit of SQLite waits 6 ms for a disk.

    What a process has written when it is killed is there all the same, as on a disk whose machine stays up.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK):
        return None
    place = os.statvfs(_MEMORY)
    runs_programs = not place.f_flag & os.ST_NOEXEC
    return _MEMORY if runs_programs and place.f_bavail * place.f_frsize >= _ROOM else None


def theirs(environment: Mapping[str, str]) -> list[str]:
    """Return the names of variables that would change what the tests do, or are secrets."""
    found = (name for name in environment if name.startswith(_PRODUCTS) or name.endswith(_SECRETS))
    return [name for name in found if name not in _DELIBERATE]


def _may_be_ours(program: str) -> bool:
    """Whether a program may run this project: a shell, or one of this environment; not, say, RewardBench's own Python."""
    path = Path(shutil.which(program) or program)
    return path.name in {"sh", "bash"} or path.parent == Path(sys.executable).parent


def _home(environment: Any) -> str:
    """Return the home that a process has with an environment; None is this process's own."""
    given = dict(os.environ if environment is None else environment)
    return os.fsdecode(given.get("NINEFOLD_HOME") or given.get(b"NINEFOLD_HOME") or DEFAULT_HOME)


SESSION = Session()
