"""A comparison holds every arm against random on the same seeds, at equal budget, and says what it does not show."""

import json
import math
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from flows.config.sweep import Sweep
from flows.reporting.comparison import compare
from flows.reporting.comparison_text import notes, table
from flows.reporting.publish import publish
from flows.reporting.storage import report_folder
from flows.sweep import run_sweep
from flows.tracking.mlflow import SWEEPS

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def test_a_sweep_is_compared_with_random_and_published(tiny_file: Path) -> None:
    given: dict[str, Any] = {
        "name": "small",
        "base": str(tiny_file),
        "presets": ["sft", "random", "shuffled"],
        "arms": {"same": {"labelling.acquisition": {"kind": "random"}, "labelling.concurrency": 2}},
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
    assert (same["mean"], same["low"], same["high"]) == (0.0, 0.0, 0.0), "the same as random"
    assert np.isnan(same["p_holm"]), "two seeds have no p-value"
    assert rows["shuffled", 6]["equal_budget"]
    assert not rows["sft", None]["equal_budget"], "no queries against ten"
    assert rows["sft", None]["win_rate"][0] == 0.5
    assert rows["sft", None]["pareto"]["win_rate"] is not None
    told = " ".join(notes(report))
    assert "so not tested: sft at 0 (other queries and money)" in told
    assert "no p-value: shuffled at 6, shuffled at 10, same at 6, same at 10." in told
    assert "An oracle of this sweep is simulated" in told
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


def kept(
    name: str, arms: dict[str, Any], *, queries: int = 10, micro_usd: int = 480_000, crossed: bool = False
) -> None:
    """Write what a sweep has left: of each arm a list of its seeds' held-out prompts, as {prompt: gain}."""
    rows = []
    for arm, (runs, changes) in arms.items():
        for number, gains in enumerate(runs):
            title = f"{name}.{arm}.{number}"
            given = {"queries": queries, "micro_usd": micro_usd, "pairs": 5, "policy": {"kl": 1.0, "tokens_after": 9.0}}
            folder = report_folder(title)
            folder.mkdir(parents=True)
            frame = pd.DataFrame({"prompt_id": list(gains), "gain": list(gains.values()), "comparisons": 1})
            frame.assign(wins=(frame.gain > 0) * 1.0, agreed=0.0, pairs=0).to_parquet(folder / "held_out.parquet")
            seeds = divmod(number, 3) if crossed else (number, number)
            rows.append({"name": title, "arm": arm, "point": {}, "seed": seeds[0], "training_seed": seeds[1]})
            rows[-1]["report"] = given | changes
    report_folder(name).mkdir(parents=True)
    sweep = {"arms": rows, "name": name, "oracle_simulated": False, "micro_usd": 0, "micro_usd_paid": 0}
    (report_folder(name) / "sweep.json").write_text(json.dumps(sweep))


def row_of(name: str, arm: str) -> tuple[dict[str, Any], str]:
    report = compare(name)
    return next(row for row in report["rows"] if row["arm"] == arm), " ".join(notes(report))


GAINS = [{"a": 1.0, "b": 0.0, "c": 1.0}, {"a": 0.0, "b": 2.0, "c": 1.0}, {"a": 3.0, "b": 1.0, "c": 0.5}]


def test_arms_are_paired_by_prompt_and_what_is_dropped_is_said() -> None:
    kept("named", {"random": ([{"z": 0.0, **GAINS[0]}], {}), "same": ([GAINS[0]], {})})
    row, told = row_of("named", "same")
    test = row["against_random"]["gain"]
    assert (test["mean"], test["low"], test["high"], test["prompts"], test["dropped"]) == (0.0, 0.0, 0.0, 3, 1)
    assert "same at 10 is held against random on 3 held-out prompts; 1 dropped" in told
    assert "An interval of one seed is over prompts alone" in told


def test_arms_without_a_common_prompt_are_not_compared() -> None:
    kept("apart", {"random": (GAINS, {}), "other": ([{f"x{name}": 1.0 for name in gains} for gains in GAINS], {})})
    row, told = row_of("apart", "other")
    assert "No held-out prompt in common with random, so not compared: other at 10." in told
    assert publish(compare("apart")).joinpath("compare.html").is_file()
    assert json.loads((report_folder("apart") / "compare.json").read_text())["rows"][1]["against_random"]["gain"] == {
        **dict.fromkeys(("mean", "low", "high", "p", "df", "p_holm")),
        "prompts": 0,
        "dropped": 6,
        "pairs": 3,
        "independent_seeds": 3,
    }
    assert row["gain"][0] == 1.0, "what it is by itself is still told"


def test_p_values_begin_at_three_seeds() -> None:
    for seeds, p in ((2, None), (3, 1.0)):
        kept(f"few{seeds}", {"random": (GAINS[:seeds], {}), "same": (GAINS[:seeds], {})})
        row, told = row_of(f"few{seeds}", "same")
        assert row["against_random"]["gain"]["p_holm"] == pytest.approx(p if p else math.nan, nan_ok=True)
        assert ("Fewer than three seeds: no p-value: same at 10." in told) == (seeds == 2)
        assert ("By gain, 1 tests" in told) == (seeds == 3)
    assert "Fewer than three seeds have a pair accuracy beside random's: no p-value by it: same at 10." in told


def test_seeds_that_random_has_not_run_are_named() -> None:
    kept("none", {"random": ([], {}), "same": (GAINS, {})})
    assert "nothing is tested. Add the preset `random`" in row_of("none", "same")[1]
    kept("alone", {"random": (GAINS[:1], {}), "same": (GAINS, {}), "other": (GAINS, {})})
    path = report_folder("alone") / "sweep.json"
    sweep = json.loads(path.read_text())
    for arm in sweep["arms"]:
        arm["seed"] += 9 * (arm["arm"] == "other")
    path.write_text(json.dumps(sweep))
    assert "No seed in common with random, so not compared: other at 10." in row_of("alone", "same")[1]


def test_crossed_seeds_count_as_the_fewer_of_the_two() -> None:
    kept("grid", {"random": (GAINS * 2, {}), "other": (GAINS * 2, {})}, crossed=True)
    row, told = row_of("grid", "other")
    assert (len(row["seeds"]), row["independent_seeds"]) == (6, 2)
    assert "other at 10: selection and training seeds are crossed, so its 6 runs count as 2 seeds." in told
    assert "Fewer than three seeds: no p-value: other at 10." in told


def test_intervals_of_shares_stay_between_zero_and_one() -> None:
    kept("wide", {"random": ([{"a": 1.0, "b": 1.0}, {"a": -1.0, "b": -1.0}], {})})
    row, _ = row_of("wide", "random")
    assert row["win_rate"] == (0.5, 0.0, 1.0)
    assert row["gain"][1] < -1


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, []),
        ({"micro_usd": 960_000}, ["money"]),
        ({"micro_usd": 500_000}, []),
        ({"micro_usd": 510_000}, ["money"]),
        ({"queries": 11}, ["queries"]),
        ({"queries": 0, "micro_usd": 0}, ["queries", "money"]),
    ],
)
def test_an_equal_budget_is_queries_and_money(changes: dict[str, int], differs: list[str]) -> None:
    kept("money", {"random": (GAINS, {}), "pairwise_from_scores": (GAINS, changes)})
    row, told = row_of("money", "pairwise_from_scores")
    assert row["unequal"] == differs
    assert row["equal_budget"] == (not differs)
    assert np.isfinite(row["against_random"]["gain"]["p_holm"]) == (not differs)
    rule = "Not at random's budget (the same queries, and money within 5%), so not tested"
    why = f"{rule}: pairwise_from_scores at {changes.get('queries', 10)} (other {' and '.join(differs)})."
    assert (why in told) == bool(differs)


def test_free_labels_are_an_equal_budget() -> None:
    kept("free", {"random": (GAINS, {}), "other": (GAINS, {})}, micro_usd=0)
    assert row_of("free", "other")[0]["equal_budget"]
