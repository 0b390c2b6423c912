"""Write a comparison to the sweep's report folder and log it to MLflow."""

import json
from pathlib import Path
from typing import Any

from flows.reporting.comparison import METRICS, dollars_of
from flows.reporting.comparison_text import curves, fronts, page
from flows.reporting.storage import finite, write_text, writing
from flows.tracking.mlflow import curve_runs

CURVES = "curves.png"


def publish(report: dict[str, Any]) -> Path:
    """Write the pages and pictures, log them and the curves (a metric per point, step = queries), and return the folder."""
    with writing(report["name"]) as folder:
        write_text(folder / "compare.json", json.dumps(finite(report), indent=2, allow_nan=False))
        page(report).write(folder, "compare")
        (folder / CURVES).write_bytes(curves(report))
        (folder / "pareto.png").write_bytes(fronts(report))
    curve_runs(report["name"], _points(report), [folder / name for name in _PUBLISHED])
    return folder


_PUBLISHED = ("compare.json", "compare.md", "compare.html", CURVES, "pareto.png")


def _points(report: dict[str, Any]) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """Return the points of every arm's curve: queries, and figures by name."""
    found: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for row in report["rows"]:
        figures = {"dollars": dollars_of(row), "kl": row["kl"], "pairs": row["pairs"]}
        for metric in METRICS:
            figures |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), row[metric], strict=True))
        found.setdefault(row["arm"], []).append((round(row["queries"]), figures))
    return found
