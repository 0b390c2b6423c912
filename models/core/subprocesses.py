"""Run a subprocess that is killed, with its children, when this process exits for any reason; and what children are told.

What a command holds of a GPU is not to stay taken.
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_ENDING = 40.0  # seconds, more than the watcher takes
# It reads until whoever has started it closes the pipe, or is no more.
_WATCHER = """
import os, signal, subprocess, sys, threading, time
import psutil
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
started = []
def watch():
    sys.stdin.read()
    started.extend(psutil.Process().children(recursive=True))
    command.terminate()
    try:
        command.wait(20)
    except subprocess.TimeoutExpired:
        command.kill()
threading.Thread(target=watch, daemon=True).start()
code = command.wait()
try:  # what it has started may not have ended with it, in its group or in groups of their own
    time.sleep(2 if started or code else 0)
    os.killpg(command.pid, signal.SIGKILL)
except ProcessLookupError:
    pass
for process in started:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass
sys.exit(code if code >= 0 else 128 - code)
"""


def child_environment(
    changes: Mapping[str, str] | None = None, *, instead: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment for a child process: this one's, or another `instead`, with changes.

    `python -m` and `python -c` import from the working directory first, so that a user's own `models/` or `prefect.py`
    there would run in place of ours, with the oracles' keys: PYTHONSAFEPATH keeps it out, for grandchildren too.
    """
    return {**(os.environ if instead is None else instead), **(changes or {}), "PYTHONSAFEPATH": "1"}


@contextmanager
def watched(
    command: Sequence[str],
    *,
    output: IO[str] | None = None,
    environment: Mapping[str, str] | None = None,
    within: Path | None = None,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command during the block, at whose end it is ended with all that it has started: politely, and then not.

    It works `within` a folder. Ctrl-C does not reach it. Its exit status is the process's.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _WATCHER, *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        env=child_environment(instead=environment),
        cwd=within,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None  # noqa: S101 - it was asked for
        process.stdin.close()
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(process: "subprocess.Popen[bytes]", url: str, *, seconds: float) -> bool:
    """Wait until a server's health page answers, and return True; False if its process ends or the time is over.

    No proxy is asked: the server is on this machine.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), direct.open(url, timeout=5) as answer:
            if answer.status < 400:
                return True
        time.sleep(0.2)
    return False
