"""Identify processes by number and start time, list their descendants, and terminate process trees."""

import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

Known = tuple[int, float]
_CLOCK_STEP = 60.0  # seconds; a process's start is computed from the wall clock, which may be stepped


def this_one() -> Known:
    """Return the process that asks."""
    own = psutil.Process()
    return own.pid, own.create_time()


def living(known: Known) -> psutil.Process | None:
    """Return a known process if it is alive and the same."""
    try:
        process = psutil.Process(known[0])
        same = abs(process.create_time() - known[1]) < _CLOCK_STEP
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def family(leaders: Iterable[int]) -> tuple[Known, ...]:
    """Return living processes by number, and all that they have started, whatever session it is in."""
    found: set[Known] = set()
    for leader in leaders:
        with suppress(psutil.Error):
            process = psutil.Process(leader)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    found.add((one.pid, one.create_time()))
    return tuple(sorted(found))


def end(leaders: Sequence[Known], others: Sequence[Known] = (), *, patience: float) -> None:
    """Ask processes to end, and kill what is left after `patience` seconds: they, their groups, and the others."""
    asked = [process for known in leaders if (process := living(known)) is not None]
    started = family(process.pid for process in asked)
    for process in asked:
        with suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(asked, timeout=patience)
    for process in asked:
        kill_group(process.pid)
    for known in {*started, *others}:
        if (left := living(known)) is not None:
            with suppress(psutil.Error):
                left.kill()


def kill_group(leader: int) -> None:
    """Kill what is left of a process group, whose leader may have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
