"""Ctrl-C and kill -9 in every stage: the next run loses no label, buys none twice, and redoes only what was unfinished."""

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.ledger.ledger import Ledger
from tests.support.processes import begin, finished

ROOT = Path(__file__).parents[2]
STAGES = [
    "load_prompts",
    "fine_tune",
    "generate",
    "embed",
    "annotate",
    "fit_evaluator",
    "cross_fit",
    "score",
    "build_pairs",
    "reference",
    "align",
    "likelihood",
    "assess_policy",
    "reformat",
    "assess_biases",
]


@pytest.fixture
def experiment(tmp_path: Path, tiny_settings: dict[str, Any]) -> Path:
    """The tiny experiment with an oracle slow enough to be interrupted in the middle."""
    slow = {"kind": "noisy", "inner": {"kind": "gold"}, "latency": 0.15}
    changed = {**tiny_settings, "labelling": {**tiny_settings["labelling"], "oracle": slow, "concurrency": 2}}
    path = tmp_path / "slow.yaml"
    path.write_text(yaml.safe_dump(changed))
    return path


class Shell:
    """Runs `ninefold run` in processes of their own against one home and the test's Prefect server."""

    def __init__(self, experiment: Path, home: Path) -> None:
        from prefect.settings import PREFECT_API_URL

        self.command = ["flows.cli.main", "run", str(experiment)]
        self.environment = {
            **os.environ,
            "NINEFOLD_HOME": str(home),
            "PREFECT_API_URL": str(PREFECT_API_URL.value()),
            "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect" / "storage"),
            "PYTHONUNBUFFERED": "1",
            "NINEFOLD_LOG": "debug",  # that a stage begins is told too
            "COLUMNS": "200",
        }
        self.home = home
        self.finished: Counter[str] = Counter()

    def until(self, stage: str, how: signal.Signals) -> int:
        """Start a run and send it the signal inside the stage; return its exit status."""
        reading, writing = os.pipe()
        pipe = Path(f"/proc/{os.getpid()}/fd/{writing}")
        process = begin(*self.command, environment=self.environment, cwd=ROOT, out=pipe)
        with open(reading) as said:
            seen: list[str] = []
            for line in said:
                if not seen:
                    os.close(writing)  # it has its own: what it says ends with it
                seen.append(line)
                self._count(line)
                if f"▶ {stage}" in line:
                    if stage == "annotate":
                        self._wait_for_labels(2)
                    process.send_signal(how)
                    break
            else:
                raise AssertionError(f"the run ended before {stage}:\n{''.join(seen)[-3000:]}")
            rest = said.read()
        for line in rest.splitlines():
            self._count(line)
        if how == signal.SIGINT:
            assert "every label paid for is kept" in rest, rest[-2000:]
        return process.wait(120)

    def whole(self) -> str:
        done = finished(*self.command, environment=self.environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        for line in done.stdout.splitlines():
            self._count(line)
        return done.stdout

    def _count(self, line: str) -> None:
        if "✔ " in line and "from cache" not in line:
            self.finished[line.split("✔ ")[1].split(maxsplit=1)[0]] += 1

    def _wait_for_labels(self, count: int) -> None:
        ledger = Ledger(f"sqlite:///{self.home / 'ledger.sqlite'}")
        deadline = time.monotonic() + 30
        while len(list(ledger.rows(status="labelled"))) < count:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server")
def test_an_interruption_in_each_stage_loses_nothing_and_buys_nothing_twice(experiment: Path, home: Path) -> None:
    shell = Shell(experiment, home)
    ledger_url = f"sqlite:///{home / 'ledger.sqlite'}"
    kept: dict[tuple[str, str], int] = {}
    for number, stage in enumerate(STAGES):
        how = signal.SIGKILL if number % 2 or stage == "annotate" else signal.SIGINT
        status = shell.until(stage, how)
        assert status == (130 if how == signal.SIGINT else -signal.SIGKILL)
        if stage == "annotate":
            interrupted = shell.until(stage, signal.SIGINT)
            assert interrupted == 130
        if (home / "ledger.sqlite").exists():
            owned = {(r["prompt"], r["response"]): r["id"] for r in Ledger(ledger_url).rows(status="labelled")}
            assert kept.items() <= owned.items(), f"a label was lost in {stage}"
            kept = owned
    output = shell.whole()
    assert "queries" in output

    rows = list(Ledger(ledger_url).rows())
    questions = Counter((r["prompt_hash"], r["response_hash"]) for r in rows if r["status"] == "labelled")
    assert max(questions.values()) == 1, "a label was bought twice"
    training = [r for r in rows if r["account"] == rows[0]["account"]]
    assert len(training) <= 10, "the cap counts lost calls too"
    lost = sum(r["status"] == "lost" for r in training)
    assert lost <= 2 * 2, "at most the calls in flight at each of the two interruptions"
    assert len(training) - lost >= 10 - lost
    assert not [r for r in rows if r["status"] == "reserved"]
    once = ["load_prompts", "fine_tune", "build_pairs", "reference", "align"]
    for stage in once:
        assert shell.finished[stage] == 1, f"{stage} ran to its end {shell.finished[stage]} times: {shell.finished}"
