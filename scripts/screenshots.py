"""The pictures of docs/: a sweep in MLflow (runs, curves) and in Prefect, as a browser shows them.

`ninefold up --detach`, then `python scripts/screenshots.py SWEEP`: a sweep that this home has run.
"""

import sys
from pathlib import Path

from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).parents[1]))

from flows.runtime.environment import configure_process

configure_process()

from prefect import get_client  # noqa: E402
from prefect.client.schemas.filters import FlowRunFilter  # noqa: E402
from prefect.client.schemas.sorting import FlowRunSort  # noqa: E402

from flows.runtime.servers import servers  # noqa: E402
from flows.tracking.links import curves_page, runs_page  # noqa: E402
from tests.support.browser import browser, prefect_page  # noqa: E402

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main(sweep: str) -> None:
    """Take the three pictures of a sweep."""
    up = servers()
    if up is None:
        raise SystemExit("nothing is up: ninefold up --detach")
    with get_client(sync_client=True) as client:
        named = FlowRunFilter.model_validate({"name": {"any_": [sweep]}})
        run = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
    with browser(width=1800, height=1000) as page:
        page.goto(runs_page(sweep))
        page.wait_for_selector(".ag-row")
        _tidy(page)
        page.screenshot(path=IMAGES / "mlflow_runs.png")
        page.goto(curves_page(sweep))
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .point').length > 0")
        _tidy(page)
        page.screenshot(path=IMAGES / "mlflow_curves.png")
        prefect_page(page, f"http://127.0.0.1:{up.prefect_port}/runs/flow-run/{run.id}", up.password)
        page.locator("li,a,button,[role=tab]").filter(has_text="Artifacts").last.click()
        page.wait_for_timeout(5000)  # the timeline is drawn on a canvas
        page.screenshot(path=IMAGES / "prefect_sweep.png")


def _tidy(page: Page) -> None:
    """Close MLflow's assistant, which a new browser opens beside every page, and let what is drawn settle."""
    page.wait_for_timeout(3000)
    close = page.locator("button[aria-label='Close'], button[aria-label='close']")
    if close.count():
        close.last.click()
        page.wait_for_timeout(1000)


if __name__ == "__main__":
    main(sys.argv[1])
