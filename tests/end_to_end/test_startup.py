"""A run that finds everything in the cache starts one server, computes nothing, and loads nothing to compute with."""

import json
import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT, ninefold, without_prefect

HEAVY = ("torch", "transformers", "trl", "matplotlib", "faiss", "sklearn", "scipy.stats", "scipy.optimize", "datasets")
RUN = f"""
import json, sys
import psutil
from flows.cli.main import main
try:
    main()
except SystemExit as ended:
    status = ended.code
children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
print(json.dumps([status, children, [name for name in {HEAVY!r} if name in sys.modules]]), file=sys.stderr)
"""


def told(home: Path, *arguments: str) -> tuple[int, list[str], list[str]]:
    """Return a command's exit status, the processes that it has started and that run still, and what it has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=ROOT,
        env=without_prefect() | {"NINEFOLD_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    status, children, loaded = json.loads(done.stderr.splitlines()[-1])
    return status, children, loaded


def test_a_cached_run_starts_one_server_and_loads_nothing_to_compute_with(tmp_path: Path, tiny_file: Path) -> None:
    place = tmp_path / "home"
    first = ninefold("run", str(tiny_file), home=place, environment=without_prefect() | {"OMP_NUM_THREADS": "1"})
    assert first.returncode == 0, first.stderr
    status, children, loaded = told(place, "run", str(tiny_file))
    assert status == 0
    assert ["flows.runtime.prefect_server" in child for child in children] == [True], children
    assert loaded == []


def test_a_plan_starts_nothing_and_loads_little(tmp_path: Path, tiny_file: Path) -> None:
    status, children, loaded = told(tmp_path / "home", "plan", str(tiny_file))
    assert status == 0
    assert children == []
    assert loaded == []
    assert not (tmp_path / "home").exists(), "a plan writes nothing"
