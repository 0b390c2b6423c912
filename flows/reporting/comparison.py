"""Compare the arms of a sweep with the random strategy, at equal budget and paired by seed and prompt."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flows.reporting.storage import fetched, reports_with
from flows.steps.results import HELD_OUT
from models.core.errors import ConfigError
from models.core.money import MICRO
from models.metrics.comparison import Outcomes, difference, holm, mean_of, pareto, spread
from models.metrics.crossed import independent_seeds
from models.metrics.intervals import Interval

BASELINE, BUDGET = "random", "labelling.queries"
# name: what is summed over a prompt, and what it is divided by
METRICS = {"agreement": ("agreed", "pairs"), "win_rate": ("wins", "comparisons"), "gain": ("gain", "comparisons")}
SHARES = ("agreement", "win_rate")  # lie between 0 and 1, and so do the ends of their intervals
# prices of the same queries differ with the lengths of the replies; more than this is another budget
EQUAL_MONEY = 0.05


class Run(NamedTuple):
    """One finished run: which arm it is of, at which point of the grid, and what its held-out prompts say by metric."""

    series: str
    budget: Any
    seeds: tuple[int, int]
    report: dict[str, Any]
    outcomes: dict[str, Outcomes]


def compare(name: str) -> dict[str, Any]:
    """Return the comparison of a sweep's arms; raise ConfigError if there is no such sweep, or no arm has finished."""
    sweep = _sweep(name)
    runs = [_run(arm) for arm in sweep["arms"] if arm["report"]]
    if not runs:
        raise ConfigError(f"no arm of sweep {name!r} has finished: `ninefold sweep` runs what is missing")
    cells: dict[tuple[str, Any], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.series, run.budget].append(run)
    rows = [_row(series, budget, cells) for series, budget in cells]
    for metric in METRICS:
        tested = [row["against_random"][metric] for row in rows if row["against_random"] and row["equal_budget"]]
        tested = [test for test in tested if np.isfinite(test["p"])]
        for test, adjusted in zip(tested, holm([test["p"] for test in tested]), strict=True):
            test["p_holm"] = adjusted
    for metric in METRICS:
        known = [row for row in rows if np.isfinite(row[metric].mean)]
        front = pareto([row["micro_usd"] for row in known], [row[metric].mean for row in known])
        for number, row in enumerate(known):
            row["pareto"][metric] = number in front
    missing = [arm["name"] for arm in sweep["arms"] if not arm["report"]]
    return {
        "name": name,
        "baseline": BASELINE if any(row["against_random"] for row in rows) else None,
        "oracle_simulated": sweep["oracle_simulated"],
        "missing": missing,
        "micro_usd": sweep["micro_usd"],
        "micro_usd_paid": sweep["micro_usd_paid"],
        "rows": rows,
    }


def series_of(arm: Mapping[str, Any]) -> str:
    """Return the name of the learning curve that a run is a point of: its arm, and the grid but for the budget."""
    rest = [f"{field.rpartition('.')[2]}={value}" for field, value in arm["point"].items() if field != BUDGET]
    return " ".join([arm["arm"], *rest])


def _sweep(name: str) -> dict[str, Any]:
    path = fetched(name) / "sweep.json"
    if not path.is_file():
        known = ", ".join(reports_with(path.name)) or "none yet; run `ninefold sweep` first"
        raise ConfigError(f"no sweep {name!r}: there are {known}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _run(arm: dict[str, Any]) -> Run:
    table = pd.read_parquet(fetched(arm["name"]) / HELD_OUT)
    prompts = [str(name) for name in table.prompt_id]
    outcomes = {
        metric: Outcomes(prompts, table[total].to_numpy(np.float64), table[count].to_numpy(np.float64))
        for metric, (total, count) in METRICS.items()
    }
    return Run(series_of(arm), arm["point"].get(BUDGET), (arm["seed"], arm["training_seed"]), arm["report"], outcomes)


def _row(series: str, budget: object, cells: Mapping[tuple[str, Any], Sequence[Run]]) -> dict[str, Any]:
    runs = cells[series, budget]
    reports = [run.report for run in runs]
    row: dict[str, Any] = {
        "arm": series,
        "budget": budget,
        "seeds": [list(run.seeds) for run in runs],
        "queries": _mean(reports, lambda r: r["queries"]),
        "micro_usd": _mean(reports, lambda r: r["micro_usd"]),
        "pairs": _mean(reports, lambda r: r["pairs"]),
        "kl": _mean(reports, lambda r: r["policy"]["kl"]),
        "tokens": _mean(reports, lambda r: r["policy"]["tokens_after"]),
        "pareto": {},
    }
    for metric in METRICS:
        mean, low, high, *_ = mean_of([run.outcomes[metric] for run in runs], [run.seeds for run in runs])
        row[metric] = Interval(mean, *_bounded(metric, low, high, least=0.0))
        row[f"{metric}_spread"] = spread({run.seeds: run.outcomes[metric].mean for run in runs})._asdict()
    baseline = _baseline(series, budget, cells)
    pairs = [(run, other) for run in runs for other in baseline if run.seeds == other.seeds]
    row["independent_seeds"] = independent_seeds([run.seeds for run in runs])
    row["unequal"] = unequal([(run.report, other.report) for run, other in pairs])
    row["equal_budget"] = bool(pairs) and not row["unequal"]
    row["against_random"] = _against(pairs) if pairs else None
    return row


def unequal(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    """Return which of queries and money differ between the reports of paired runs.

    Queries are to be the same in every pair; money, over all pairs, within EQUAL_MONEY of the mean of both sides.
    """
    found = ["queries"] if any(run["queries"] != other["queries"] for run, other in pairs) else []
    ours, random = (sum(pair[side]["micro_usd"] for pair in pairs) for side in (0, 1))
    return [*found, *(["money"] if abs(ours - random) > EQUAL_MONEY * (ours + random) / 2 else [])]


def _baseline(series: str, budget: object, cells: Mapping[tuple[str, Any], Sequence[Run]]) -> Sequence[Run]:
    """Return random's runs at the same point; for an arm with a budget of its own, those at the largest."""
    arm, _, rest = series.partition(" ")
    if arm == BASELINE:
        return ()
    name = f"{BASELINE} {rest}".strip()
    known = sorted((b for s, b in cells if s == name), key=lambda b: -1 if b is None else b)
    return cells[name, budget if budget in known else known[-1]] if known else ()


def _against(pairs: Sequence[tuple[Run, Run]]) -> dict[str, dict[str, float]]:
    found, seeds = {}, [run.seeds for run, _ in pairs]
    worth = independent_seeds(seeds)
    for metric in METRICS:
        ours, other = ([run.outcomes[metric] for run in side] for side in zip(*pairs, strict=True))
        test = {**difference(ours, other, seeds)._asdict(), "pairs": len(pairs), "independent_seeds": worth}
        low, high = _bounded(metric, test["low"], test["high"], least=-1.0)
        found[metric] = {**test, "low": low, "high": high, "p_holm": float("nan")}
    return found


def _bounded(metric: str, low: float, high: float, *, least: float) -> tuple[float, float]:
    """Return the ends of an interval, cut to what the metric can be; NaN stays."""
    return (max(low, least), min(high, 1.0)) if metric in SHARES and np.isfinite(low) else (low, high)


def _mean(reports: Sequence[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
    return float(np.mean([of(report) for report in reports]))


def dollars_of(row: Mapping[str, Any]) -> float:
    """Return the dollars of a row, as if its arm had run alone."""
    return float(row["micro_usd"]) / MICRO
