"""Put a comparison of arms into a table and sentences, and draw its learning curves and Pareto fronts."""

import math
from collections.abc import Callable
from typing import Any

from flows.reporting.comparison import BASELINE, EQUAL_MONEY, METRICS, dollars_of
from flows.reporting.figures import png
from flows.reporting.render import Notes, Page, Pictures, Table
from models.core.money import dollars
from models.metrics.crossed import LEAST_SEEDS

_NAMES = {"agreement": "pair accuracy", "win_rate": "win rate", "gain": "gain"}
_TITLES = ("arm", "queries", "cost", "seeds", *_NAMES.values(), "gain on random's gain", "p (Holm)", "KL", "pairs")


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the titles and the cells, one row per arm and budget."""
    return _TITLES, [_cells(row) for row in report["rows"]]


def notes(report: dict[str, Any]) -> list[str]:
    """Return what a reader must know before believing the table."""
    found, rows = [], report["rows"]
    if report["oracle_simulated"]:
        found.append("An oracle of this sweep is simulated.")
    if report["missing"]:
        found.append(f"Missing: {', '.join(report['missing'])}.")
    if report["baseline"] is None:
        found.append("No arm is called random with the same seeds: nothing is tested. Add the preset `random`.")
    tested = [row for row in rows if row["against_random"] and row["equal_budget"]]
    for metric, name in _NAMES.items():
        known = [row for row in tested if math.isfinite(row["against_random"][metric]["p_holm"])]
        shown = [_told(row) for row in known if row["against_random"][metric]["p_holm"] < 0.05]
        if known:
            verdict = f"differ from random: {', '.join(shown)}" if shown else "no arm is shown to differ from random"
            found.append(f"By {name}, {len(known)} tests, Holm: {verdict}.")
    return [*found, *(_untested(rows) if report["baseline"] else ()), *_counted(rows), *_spreads(rows)]


def _untested(rows: list[dict[str, Any]]) -> list[str]:
    """Return why an arm has no p-value, a sentence for each reason."""
    compared = [row for row in rows if row["against_random"]]
    unequal = [f"{_told(row)} (other {' and '.join(row['unequal'])})" for row in compared if row["unequal"]]
    equal = [(row, row["against_random"]) for row in compared if row["equal_budget"]]
    few = [_told(row) for row, test in equal if test["gain"]["independent_seeds"] < LEAST_SEEDS]
    apart = [_told(row) for row, test in equal if not test["gain"]["prompts"]]
    reasons = {
        f"Not at random's budget (the same queries, and money within {EQUAL_MONEY:.0%}), so not tested": unequal,
        "No seed in common with random, so not compared": [
            _told(row) for row in rows if row["against_random"] is None and row["arm"].partition(" ")[0] != BASELINE
        ],
        "No held-out prompt in common with random, so not compared": apart,
        "Fewer than three seeds: no p-value": few,
    }
    for metric, name in _NAMES.items():
        silent = [_told(row) for row, test in equal if not math.isfinite(test[metric]["p"])]
        reasons[f"Fewer than three seeds have a {name} beside random's: no p-value by it"] = [
            arm for arm in silent if arm not in (*few, *apart)
        ]
    return [f"{reason}: {', '.join(arms)}." for reason, arms in reasons.items() if arms]


def _counted(rows: list[dict[str, Any]]) -> list[str]:
    """Return what the figures are means of: seeds and prompts."""
    found = []
    for row in rows:
        test = row["against_random"] and row["against_random"]["gain"]
        if test and test["dropped"] and test["prompts"]:
            found.append(
                f"{_told(row)} is held against random on {test['prompts']} held-out prompts; {test['dropped']} dropped, "
                "which one of the two lacks in some seed."
            )
        if 1 < row["independent_seeds"] < len(row["seeds"]):
            found.append(
                f"{_told(row)}: selection and training seeds are crossed, so its {len(row['seeds'])} runs count as "
                f"{row['independent_seeds']} seeds."
            )
    least = min(row["independent_seeds"] for row in rows)
    alone = " An interval of one seed is over prompts alone, and says nothing of other seeds." if least == 1 else ""
    return [
        *found,
        f"Intervals are for other seeds and other held-out prompts (Student's t); {least} seeds at the least.{alone}",
    ]


def page(report: dict[str, Any]) -> Page:
    """Return the comparison's page; the pictures lie beside it."""
    pictures = Pictures({"curves.png": "learning curves", "pareto.png": "Pareto fronts"}, wide=True)
    return Page(f"{report['name']}: comparison", [Table(*table(report)), Notes(notes(report)), pictures])


def curves(report: dict[str, Any]) -> bytes:
    """Return the learning curves as PNG: evaluator agreement and DPO outcome, over queries and over dollars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    budgets: list[tuple[str, Callable[[dict[str, Any]], float]]]
    budgets = [("queries", lambda row: float(row["queries"])), ("dollars", dollars_of)]
    arms = list(dict.fromkeys(row["arm"] for row in report["rows"]))
    for line, metric in zip(panels, ("agreement", "win_rate"), strict=True):
        for axes, (title, of) in zip(line, budgets, strict=True):
            for number, arm in enumerate(arms):
                points = sorted((row for row in report["rows"] if row["arm"] == arm), key=of)
                points = [row for row in points if math.isfinite(row[metric].mean)]
                if not points:
                    continue
                mean, low, high = zip(*(row[metric] for row in points), strict=True)
                away = [
                    [m - a for m, a in zip(mean, low, strict=True)],
                    [b - m for m, b in zip(mean, high, strict=True)],
                ]
                style = "k-o" if arm == "random" else "-o"
                colour = {} if arm == "random" else {"color": f"C{number % 10}"}
                axes.errorbar(
                    [of(row) for row in points], mean, yerr=away, fmt=style, ms=4, lw=1.2, label=arm, **colour
                )
            axes.set(xlabel=title, ylabel=_NAMES[metric])
            axes.axhline(0.5, color="#8a94a6", lw=0.8, ls=":")
            axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[1][0].get_legend_handles_labels(), loc="outside right", frameon=False, fontsize=8)
    return png(figure)


def fronts(report: dict[str, Any]) -> bytes:
    """Return, as PNG, every arm's cost against each figure; those that nothing beats are joined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        rows = [row for row in report["rows"] if math.isfinite(row[metric].mean)]
        for row in rows:
            axes.plot(dollars_of(row), row[metric].mean, "o", color="#d9730d" if row["pareto"][metric] else "#8a94a6")
            axes.annotate(
                _told(row), (dollars_of(row), row[metric].mean), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
        front = sorted((dollars_of(row), row[metric].mean) for row in rows if row["pareto"][metric])
        if front:
            axes.step(*zip(*front, strict=True), where="post", color="#d9730d", lw=1)
        axes.set(xlabel="dollars", ylabel=_NAMES[metric])
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _cells(row: dict[str, Any]) -> list[str]:
    against = row["against_random"] if row["equal_budget"] else None
    gain = against["gain"] if against else {"mean": math.nan, "low": math.nan, "high": math.nan, "p_holm": math.nan}
    return [
        row["arm"],
        f"{row['queries']:.0f}",
        dollars(round(row["micro_usd"])),
        str(len(row["seeds"])),
        *(_interval(*row[metric]) for metric in METRICS),
        _interval(gain["mean"], gain["low"], gain["high"], signed=True),
        "< 0.01" if gain["p_holm"] < 0.01 else _number(gain["p_holm"]),  # NaN is not less
        _number(row["kl"]),
        f"{row['pairs']:.0f}",
    ]


def _spreads(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in rows:
        of = row["win_rate_spread"]
        if math.isfinite(of["total"]):
            parts = (
                f" (selection seed {of['selection']:.3f}, training seed {of['training']:.3f}, rest {of['rest']:.3f})"
            )
            split = parts if math.isfinite(of["selection"]) else ""
            found.append(f"{_told(row)}: √ of the win rate's variance over seeds {of['total']:.3f}{split}.")
    return found


def _told(row: dict[str, Any]) -> str:
    return f"{row['arm']} at {row['queries']:.0f}"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _interval(mean: float, low: float, high: float, *, signed: bool = False) -> str:
    if not math.isfinite(mean):
        return "–"
    return f"{mean:{'+' if signed else ''}.2f} [{_number(low)}, {_number(high)}]"
