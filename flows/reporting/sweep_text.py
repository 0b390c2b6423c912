"""Put a sweep's arms into a table, for the terminal, its page and Prefect's."""

from typing import Any

from flows.reporting.render import Notes, Page, Table
from models.core.money import MICRO, dollars

_COLUMNS = ("arm", "seed", "queries", "dollars", "pair accuracy", "win rate", "gain", "KL", "state")


def rows_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per run, in the sweep's order; what failed has its reason and no figures."""
    return [_row(arm) for arm in report["arms"]]


def notes(report: dict[str, Any]) -> list[str]:
    """Return what a reader must know before believing the table."""
    found = []
    missing = [arm["name"] for arm in report["arms"] if not arm["report"]]
    if missing:
        found.append(f"Missing: {', '.join(missing)}. The same command runs what is missing, and nothing else.")
    if report["oracle_simulated"]:
        found.append("An oracle of this sweep is simulated.")
    found += [
        f"{title} asks for the same experiment as {first}: run once." for title, first in report["merged"].items()
    ]
    found.append(
        f"{dollars(report['micro_usd'])} if each arm had run alone, {dollars(report['micro_usd_paid'])} paid: labels and "
        "stages are shared."
    )
    return found


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the titles and the cells, one row per run."""
    return _COLUMNS, [_cells(row) for row in rows_of(report)]


def page(report: dict[str, Any]) -> Page:
    """Return the sweep's page."""
    executed = ", ".join(f"{name} × {count}" for name, count in sorted(report["executed"].items()))
    told = f"Stages executed: {executed or 'none, all from the cache'}."
    return Page(report["name"], [Table(*table(report)), Notes([*notes(report), told])])


def _row(arm: dict[str, Any]) -> dict[str, Any]:
    told = " ".join([arm["arm"], *(f"{field.rpartition('.')[2]}={value}" for field, value in arm["point"].items())])
    row: dict[str, Any] = {"arm": told, "seed": arm["seed"]}
    report = arm["report"]
    if report is None:
        return row | dict.fromkeys(_COLUMNS[2:-1]) | {"state": arm["failure"] or "not run yet"}
    return row | {
        "queries": report["queries"],
        "dollars": report["micro_usd"] / MICRO,
        "pair accuracy": report["evaluator"]["pair_accuracy"]["mean"] if report["evaluator"] else None,
        "win rate": report["policy"]["win_rate"]["mean"],
        "gain": report["policy"]["oracle_gain"]["mean"],
        "KL": report["policy"]["kl"],
        "state": "done",
    }


def _cells(row: dict[str, Any]) -> list[str]:
    def shown(name: str) -> str:
        value = row[name]
        if value is None:
            return "–"
        if name == "dollars":
            return dollars(round(value * MICRO))
        return f"{value:.2f}" if isinstance(value, float) else " ".join(str(value).split())

    return [shown(name) for name in _COLUMNS]
