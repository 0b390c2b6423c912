"""A comparison holds every arm against random on the same seeds, at equal budget, and says what it does not show."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest

from flows.compare import compare
from flows.compare_pages import notes, table
from flows.compare_run import publish
from flows.reports import report_folder
from flows.sweep import Sweep
from flows.sweep_run import run_sweep
from flows.tracking import SWEEPS

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def test_a_sweep_is_compared_with_random_and_published(tiny_file: Path) -> None:
    given: dict[str, Any] = {
        "name": "small",
        "base": str(tiny_file),
        "presets": ["sft", "random", "shuffled"],
        "arms": {"same": {"labelling.acquisition": {"kind": "random"}, "labelling.workers": 2}},
        "grid": {"labelling.queries": [6, 10]},
        "seeds": [0, 1],
        "max_micro_usd": 100_000_000,
    }
    run_sweep(Sweep.model_validate(given))
    report = compare("small")
    rows = {(row["arm"], row["budget"]): row for row in report["rows"]}
    assert set(rows) == {("sft", None), *((arm, n) for arm in ("random", "shuffled", "same") for n in (6, 10))}
    assert rows["random", 10]["against_random"] is None
    same = rows["same", 10]["against_random"]["gain"]
    assert (same["mean"], same["low"], same["high"], same["p_holm"]) == (0.0, 0.0, 0.0, 1.0), "the same as random"
    assert rows["shuffled", 6]["equal_budget"]
    assert not rows["sft", None]["equal_budget"], "no queries against ten"
    assert rows["sft", None]["win_rate"][0] == 0.5
    assert rows["sft", None]["pareto"]["win_rate"] is not None
    told = " ".join(notes(report))
    assert "Not at random's budget, so not tested: sft at 0" in told
    assert "An expert of this sweep is simulated" in told
    assert "√ of the win rate's variance over seeds" in told
    titles, cells = table(report)
    assert all(len(row) == len(titles) for row in cells)

    for _ in range(2):  # a second time replaces the first
        folder = publish(report)
        found = mlflow.search_runs(experiment_names=[SWEEPS], output_format="list")
        assert sorted(run.info.run_name for run in found) == ["random", "same", "sft", "shuffled", "small"]
    assert json.loads((folder / "compare.json").read_text())["name"] == "small"
    assert (folder / "curves.png").read_bytes()[:4] == (folder / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert "# small: comparison" in (folder / "compare.md").read_text()
    assert "curves.png" in (folder / "compare.html").read_text()
    curve = next(run for run in found if run.info.run_name == "random")
    history = mlflow.MlflowClient().get_metric_history(curve.info.run_id, "win_rate")
    assert [point.step for point in history] == [6, 10], "the chart over steps is the learning curve over queries"


def test_a_sweep_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="no sweep 'nothing': there are none yet"):
        compare("nothing")


def test_a_sweep_of_which_nothing_has_finished_is_refused() -> None:
    folder = report_folder("stopped")
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"arms": [{"name": "a", "report": None}]}))
    with pytest.raises(ValueError, match="no arm of sweep 'stopped' has finished"):
        compare("stopped")
