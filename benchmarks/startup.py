"""How long commands take before and beside their work: start, plan, report, and a run that finds all in the cache.

    make demo && python benchmarks/startup.py                  # of the quickstart, in the home that make demo has filled
    python benchmarks/startup.py --experiment my.yaml          # of a finished run of your own, in NINEFOLD_HOME
    python benchmarks/startup.py --peer                        # and the recovery job, beside distilabel 1.5.3

Every measurement is a process of its own, taken several times; the cached run also beside the servers of `ninefold up`.
"Cold" means that the files of Python, of its packages and of this project are dropped from the system's file cache before.
The peer's job is that of benchmarks/recovery.py, run again when all of it is in the cache. The last line is JSON: seconds,
[least, median, most].
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.recovery import Contestant, contestants  # noqa: E402
from tests.support.fake_judge import LoopbackJudge  # noqa: E402

QUICKSTART = ROOT / "deployments" / "experiments" / "quickstart.yaml"


def ninefold(*arguments: str) -> None:
    """Run a command as its user does, in a process of its own; raise ChildProcessError with what it says if it fails."""
    command = [str(Path(sys.executable).with_name("ninefold")), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ChildProcessError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")


def timed(work: Callable[[], object], repeats: int, *, cold: bool = False) -> list[float]:
    """Return the least, the median and the most seconds that work took, of so many times."""
    seconds = []
    for _ in range(repeats):
        if cold:
            forget_files()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return [round(of(seconds), 2) for of in (min, statistics.median, max)]


def forget_files() -> None:
    """Drop the files of Python and of this project from the system's file cache."""
    os.sync()
    for folder in {sys.base_prefix, sys.prefix, str(ROOT)}:
        for place, _, names in os.walk(folder):
            for name in names:
                try:
                    descriptor = os.open(os.path.join(place, name), os.O_RDONLY)
                except OSError:
                    continue
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


@contextmanager
def servers_up() -> Iterator[None]:
    """Keep the servers of `ninefold up` up during the block."""
    ninefold("up", "--detach", "--mlflow-port", "5811", "--prefect-port", "4811")
    try:
        yield
    finally:
        ninefold("down")


def recovery_again(rows: int) -> dict[str, float]:
    """Return the seconds of the recovery job run again, all of it cached, of ours and of the peer."""
    found = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch, LoopbackJudge(latency=0.01) as server:
        for name, command in contestants().items():
            job = Contestant(name, command, rows, Path(scratch) / name)
            job.run(server)
            found[name] = round(min(job.run(server)[0] for _ in range(3)), 2)
    return found


def main() -> None:
    """Take every measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", type=Path, default=QUICKSTART, help="whose run has finished in this home")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="also run the recovery job, beside distilabel")
    parser.add_argument("--rows", type=int, default=2000, help="of the recovery job")
    given = parser.parse_args()
    from flows.config.experiment import Experiment
    from flows.config.loading import read

    file, name = str(given.experiment), read(Experiment, given.experiment)["name"]
    commands: dict[str, list[str]] = {
        "--help": ["--help"],
        "plan": ["plan", file],
        "report": ["report", name],
        "cached run": ["run", file],
    }
    ninefold(*commands["cached run"])  # what is not in the cache yet
    found: dict[str, Any] = {}
    for what, arguments in commands.items():
        for cold in (False, True):
            case = f"{what}, {'cold' if cold else 'warm'}"
            found[case] = timed(lambda a=arguments: ninefold(*a), given.repeats, cold=cold)  # type: ignore[misc]
            print(f"{case:28} {found[case][1]:6.2f} s", flush=True)
    with servers_up():
        case = "cached run, servers up"
        found[case] = timed(lambda: ninefold(*commands["cached run"]), given.repeats)
        print(f"{case:28} {found[case][1]:6.2f} s", flush=True)
    if given.peer:
        found["recovery job again"] = recovery_again(given.rows)
    print(json.dumps({"experiment": name, "cores": os.cpu_count(), "repeats": given.repeats, "seconds": found}))


if __name__ == "__main__":
    main()
