"""Links into MLflow's pages: the table of runs with its columns, and a sweep's learning curves.

MLflow 3.17 opens an experiment in its GenAI view, where runs are out of sight, and its runs table without parameters or
metrics. What its Share button makes brings them into sight, an experiment tag with the state of the page; so do these links.
"""

import json
from typing import Any, NamedTuple

from flows.runtime.prefect_server import HOST
from flows.runtime.servers import servers
from flows.tracking.mlflow import CURVE, EXPERIMENT, SWEEP, SWEEPS, open_experiment
from tasks.engine.settings import settings

_METRICS = ("metrics.agreement", "metrics.win_rate", "metrics.queries", "metrics.dollars")
_WHICH = ("params.selection_seed", "params.training_seed", "params.evaluator", "params.oracle")
_SECTION = "ninefold"
_FIRST = {"attributes.`Run Name`": 170, "attributes.`Created`": 130}  # pixels
_WIDE, _NARROW = 140, 85


class View(NamedTuple):
    """The state of a runs page: which runs, which columns (`params.x`, `metrics.x`), which metrics as lines over steps."""

    key: str
    search: str
    columns: tuple[str, ...]
    charts: tuple[str, ...]

    def state(self) -> str:
        """Return the state as MLflow's page reads it; a tag holds 5,000 characters."""
        columns = [f"{kind}.`{key}`" for kind, _, key in (name.partition(".") for name in self.columns)]
        state = {
            "searchFilter": self.search,
            "selectedColumns": columns,
            "columnOrder": [*_FIRST, *columns],
            "columnWidths": _FIRST | {column: _WIDE if "strategy" in column else _NARROW for column in columns},
            "compareRunCharts": [_line(metric) for metric in self.charts],
            "compareRunSections": [{"uuid": _SECTION, "name": "learning curves", "display": True, "isReordered": True}],
            "runsHiddenMode": "SHOW_ALL",
        }
        return json.dumps(state, separators=(",", ":"))


def runs_page(sweep: str = "", *, port: int | None = None) -> str:
    """Return the link to the table of runs, of one sweep or of all."""
    search = f"tags.`{SWEEP}` = '{sweep}'" if sweep else ""
    columns = ("params.strategy", "params.budget", *_METRICS, *_WHICH)
    view = View(f"runs-{sweep}" if sweep else "runs", search, columns, ("agreement", "win_rate"))
    return _page(EXPERIMENT, view, port)


def curves_page(sweep: str, *, port: int | None = None) -> str:
    """Return the link to a sweep's learning curves: the charts of one run per curve, whose steps are queries."""
    search = f"tags.`{SWEEP}` = '{sweep}' and tags.`{CURVE}` = 'true'"
    columns = ("params.arm", *_METRICS, "metrics.gain")
    return _page(SWEEPS, View(f"curves-{sweep}", search, columns, ("agreement", "win_rate", "gain")), port) + (
        "&compareRunsMode=CHART"
    )


def _page(experiment: str, view: View, port: int | None) -> str:
    import mlflow

    number = open_experiment(experiment)
    mlflow.MlflowClient().set_experiment_tag(number, f"mlflow.sharedViewState.{view.key}", view.state())
    return f"{_base(port)}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={view.key}"


def _base(port: int | None) -> str:
    """Return where MLflow's pages are: at a server of the user's, or where `ninefold up` serves them."""
    if settings().mlflow_is_remote:
        return settings().mlflow_uri.rstrip("/")
    if port is None:
        up = servers()
        port = up.mlflow_port if up is not None else settings().mlflow_port
    return f"http://{HOST}:{port}"


def _line(metric: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "uuid": f"{_SECTION}-{metric}",
        "metricSectionId": _SECTION,
        "displayName": f"{metric} by queries",
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "runsCountToCompare": 100,
        "xAxisKey": "step",
        "useGlobalXaxisKey": False,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": False,
        "displayPoints": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
    }
