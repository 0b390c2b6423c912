"""Identify processes by number and start time, list their descendants, and terminate process trees."""

import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_TELLS_TICKS = Path("/proc/self/stat").exists()  # Linux
_TICK = 0.5 / os.sysconf("SC_CLK_TCK")  # seconds
ProcessId = tuple[int, float]  # number, and start as `start_of` tells it
_CLOCK_STEP = 60.0  # seconds; where a process's start is computed from the wall clock, which may be stepped


def current() -> ProcessId:
    """Return the process that asks."""
    return identified(psutil.Process())


def identified(process: psutil.Process) -> ProcessId:
    """Return what tells a process from any other of this boot. Raises psutil.Error if it is gone."""
    return process.pid, start_of(process)


def start_of(process: psutil.Process) -> float:
    """Return when a process started: in seconds since the boot, whatever the wall clock says since, where that is known."""
    if not _TELLS_TICKS:
        return process.create_time()
    try:
        told = Path(f"/proc/{process.pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    return int(told.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(process_id: ProcessId) -> bool:
    """Whether a process is alive and the same; one that is dead and not looked at yet is not."""
    return alive_process(process_id) is not None


def alive_process(known: ProcessId) -> psutil.Process | None:
    """Return a known process if it is alive and the same."""
    try:
        process = psutil.Process(known[0])
        same = abs(start_of(process) - known[1]) < (_TICK if _TELLS_TICKS else _CLOCK_STEP)
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def descendants(leaders: Iterable[int]) -> tuple[ProcessId, ...]:
    """Return living processes by number, and all that they have started, whatever session it is in."""
    found: set[ProcessId] = set()
    for leader in leaders:
        with suppress(psutil.Error):
            process = psutil.Process(leader)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    found.add(identified(one))
    return tuple(sorted(found))


def terminate(leaders: Sequence[ProcessId], others: Sequence[ProcessId] = (), *, patience: float) -> None:
    """Ask processes to end, and kill what is left after `patience` seconds: they, their groups, and the others."""
    asked = [process for known in leaders if (process := alive_process(known)) is not None]
    started = descendants(process.pid for process in asked)
    for process in asked:
        with suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(asked, timeout=patience)
    for process in asked:
        kill_group(process.pid)
    for known in {*started, *others}:
        if (left := alive_process(known)) is not None:
            with suppress(psutil.Error):
                left.kill()


def kill_group(leader: int) -> None:
    """Kill what is left of a process group, whose leader may have ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
