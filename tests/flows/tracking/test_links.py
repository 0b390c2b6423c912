"""Our links into MLflow, opened in a real browser at 200 runs: the figures are in sight, and the charts are the curves."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from playwright.sync_api import Page

from flows.config.experiment import Experiment
from flows.tracking.links import curves_page, runs_page
from flows.tracking.mlflow import EXPERIMENT, SWEEP, curve_runs, log_metrics, open_experiment
from flows.tracking.run import flat_params
from tasks.engine.settings import settings
from tests.support.browser import browser
from tests.support.processes import free_port, serving

STRATEGIES = ["random", "coreset_ift", "coreset_eft", "predictive_entropy", "sharp", "typiclust", "max_herding", "apl"]
BUDGETS, SEEDS = [8, 16, 32, 64, 80], range(5)


def agreement(strategy: str, budget: int, seed: int = 0) -> float:
    return 0.5 + STRATEGIES.index(strategy) / 100 + budget / 400 + seed / 10_000


@pytest.fixture
def two_hundred_runs(home: Any, tiny_settings: dict[str, Any]) -> None:
    open_experiment(EXPERIMENT)
    for strategy in STRATEGIES:
        for budget in BUDGETS:
            for seed in SEEDS:
                labelling = tiny_settings["labelling"] | {"acquisition": {"kind": strategy}, "queries": budget}
                name = f"night.{strategy.replace('_', '-')}.queries-{budget}.s{seed}"
                changes = {"name": name, "labelling": labelling, "seeds": {"selection": seed}}
                with mlflow.start_run(run_name=name, tags={SWEEP: "night"}):
                    mlflow.log_params(flat_params(Experiment.model_validate(tiny_settings | changes)))
                    figures = {"agreement": agreement(strategy, budget, seed), "win_rate": 0.5, "dollars": budget / 100}
                    log_metrics(figures | {"queries": float(budget)}, step=budget)
    curves = {
        strategy: [(budget, {"agreement": agreement(strategy, budget), "win_rate": 0.5}) for budget in BUDGETS]
        for strategy in STRATEGIES
    }
    curve_runs("night", curves, [])


@pytest.fixture
def port(two_hundred_runs: None, tmp_path: Path) -> Iterator[int]:
    found = free_port()
    place = ["--host", "127.0.0.1", "--port", str(found), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *place, "--backend-store-uri", settings().mlflow_uri]
    own = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with serving(command, found, log=tmp_path / "mlflow.log", environment=own):
        yield found


def test_the_links_land_on_the_table_the_curves_and_the_comparison(port: int) -> None:
    with browser(width=1440) as page:
        page.goto(runs_page("night", port=port))
        page.wait_for_selector(".ag-row")
        assert headers_in_sight(page)[:4] == ["strategy", "budget", "agreement", "win_rate"]
        first = {
            cell.get_attribute("col-id"): cell.inner_text() for cell in page.locator("[row-index='0'] [col-id]").all()
        }
        assert first["params.`strategy`"] == "apl", "the newest first"

        page.locator(".ag-header-cell[col-id='metrics.`agreement`']").click()  # the best first
        best = f"{agreement('apl', 80, 4):.4f}"
        page.locator("[row-index='0'] [col-id='metrics.`agreement`']", has_text=best).wait_for()

        page.goto(curves_page("night", port=port))
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length >= 2")
        drawn = page.wait_for_function(CURVES).json_value()
        assert drawn == {s: [BUDGETS, [pytest.approx(agreement(s, budget)) for budget in BUDGETS]] for s in STRATEGIES}

        page.goto(runs_page("night", port=port) + "&compareRunsMode=CHART")  # 200 runs beside their charts
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length >= 2")

        page.goto(runs_page("night", port=port))
        page.wait_for_selector(".ag-row")
        for row in (0, 5, 10):
            page.locator(f"[row-index='{row}'] input[type=checkbox]").first.check()
        page.get_by_role("button", name="Compare").click()
        page.wait_for_url("**/compare-runs**")
        page.get_by_text("Comparing 3 Runs").first.wait_for()


# of the first chart: by curve, steps and values; null until all are drawn
CURVES = """() => {
  const plot = document.querySelector('.js-plotly-plot');
  const lines = plot.data.filter(line => line.mode && line.mode.includes('lines'));
  const found = Object.fromEntries(lines.map(line => [line.name.split(' ')[0], [[...line.x], [...line.y]]]));
  // until the page has changed it shows the runs it came from
  return lines.length >= 8 && !Object.keys(found).some(name => name.startsWith('night.')) ? found : null;
}"""


def headers_in_sight(page: Page) -> list[str]:
    """Return the titles of our columns that lie whole within the table, without scrolling."""
    table = page.locator(".ag-root-wrapper").first.bounding_box()
    assert table is not None
    found = []
    for header in page.locator(".ag-header-cell").all():
        box, column = header.bounding_box(), header.get_attribute("col-id") or ""
        if (
            box
            and column.startswith(("params", "metrics"))
            and box["x"] + box["width"] <= table["x"] + table["width"] + 1
        ):
            found.append((box["x"], header.inner_text().strip()))
    return [title for _, title in sorted(found)]
