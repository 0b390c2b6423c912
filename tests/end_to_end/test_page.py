"""A run is one calm page: the plan, a line per stage, the report, two links; in a log the same lines and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import ROOT, with_prefect, without_prefect
from tests.support.terminal import COLUMNS, on_terminal, screen

pytestmark = pytest.mark.usefixtures("prefect_server")

COMPUTED = re.compile(r"✔ (\w+) +\d+\.\d s")
CACHED = re.compile(r"✔ (\w+) +from cache \(\d+\.\d s when computed\)")


def in_log(*arguments: str, home: Path) -> str:
    """Return all that a command of ours writes where nothing is a terminal, in order; with a Prefect server of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        cwd=ROOT,
        env={**without_prefect(), "NINEFOLD_HOME": str(home), "COLUMNS": str(COLUMNS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def stages(home: Path, name: str = "tiny") -> list[str]:
    report: dict[str, Any] = json.loads((home / "reports" / name / "report.json").read_text())
    return [stage["name"] for stage in report["stages"]]


def check_page(lines: list[str], executed: list[str], cached: list[str]) -> None:
    """Plan, stages, report, links: in this order, and each line of the page is one of them."""
    text, whole = "\n".join(lines), "".join(lines)  # whole: a terminal breaks lines that are too long for it
    told = [number for number, line in enumerate(lines) if line.startswith("✔ ")]
    plan, middle, rest = lines[: told[0]], lines[told[0] : told[-1] + 1], lines[told[-1] + 1 :]
    assert any("at most 10 queries and $0.10" in line for line in plan)
    assert any(line.strip().startswith("in all") for line in plan)
    assert [found[1] for line in middle if (found := COMPUTED.fullmatch(line))] == executed
    assert [found[1] for line in middle if (found := CACHED.fullmatch(line))] == cached
    other = [line for line in middle if not line.startswith("✔ ")]
    assert all(line.startswith("warning: ") for line in other), other
    assert [line.rstrip() for line in rest[:2]] == ["", "tiny: what 10 queries bought"]
    assert [line.split()[0] for line in rest if line.startswith(("report ", "MLflow "))] == ["report", "MLflow"]
    assert "/reports/tiny/report.html" in whole
    assert "ninefold up, then open http://127.0.0.1:" in whole
    assert not re.search(r"[▶█▏▎▍▌▋▊▉]|it/s|\d%\|", text), "a bar was left behind"
    assert "Warning" not in text, "a library's page about itself"
    assert len(lines) - len(told) < 75, "more than a page: a third is the plan, and half the report"


def test_in_a_log_a_run_is_lines_only(tmp_path: Path, tiny_file: Path) -> None:
    home = tmp_path / "home"
    said = in_log("run", str(tiny_file), home=home)
    assert not re.search(r"[\r\x1b]", said)
    check_page(said.rstrip("\n").split("\n"), stages(home), [])


def test_on_a_terminal_a_run_leaves_the_same_page_and_no_bar(tmp_path: Path, tiny_file: Path) -> None:
    home = tmp_path / "home"
    said = on_terminal("run", str(tiny_file), home=home, environment=with_prefect())
    for shown in ("▶ generate  generating", "▶ fine_tune  training", "▶ align  training", "▶ annotate  labelling"):
        assert shown in said, "there are bars while it works"
    assert re.search(r"/\d+ steps .*loss \d", said)
    once = stages(home)
    check_page(_shown(said), once, [])

    again = on_terminal("run", str(tiny_file), home=home, environment=with_prefect())
    check_page(_shown(again), [], stages(home))
    assert stages(home) == once


def test_a_sweep_is_one_line_for_each_arm(tmp_path: Path, tiny_file: Path) -> None:
    given = {"name": "two", "base": str(tiny_file), "presets": ["random"], "seeds": [0, 1]}
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(given | {"max_micro_usd": 100_000_000}))
    home = tmp_path / "home"
    said = on_terminal("sweep", str(file), home=home, environment=with_prefect())
    assert "arm 2 of 2: two.random.s1  ▶ generate" in said
    lines = _shown(said)
    told = [line for line in lines if line.startswith("✔ ")]
    assert [line.split(",")[0] for line in told] == [f"✔ arm {n + 1} of 2 is done: two.random.s{n}" for n in (0, 1)]
    assert re.fullmatch(r"✔ arm 2 .*, \d+\.\d s, \d+ of \d+ stages from cache", told[1])
    assert not re.search(r"[▶█▏▎▍▌▋▊▉]", "\n".join(lines))


def test_the_libraries_bars_are_off_and_ours_are_not() -> None:
    """Some cannot be told otherwise: transformers' conversion of GGUF files makes a bar of tqdm's own."""
    script = """
from flows.runtime.environment import configure_process
configure_process()
from datasets.utils import are_progress_bars_disabled
from huggingface_hub.utils import tqdm as of_the_hub
from tqdm.auto import tqdm
from transformers.utils import logging
from models.core.progress import bar
off = tqdm(range(3)).disable, of_the_hub(range(3)).disable, are_progress_bars_disabled()
print(off, logging.is_progress_bar_enabled(), bar(3, desc="x", unit="y").disable)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "(True, True, True) False False\n", done.stderr


def _shown(said: str) -> list[str]:
    *lines, last = screen(said)
    assert last == "", "the prompt stands where a line begins"
    return lines
