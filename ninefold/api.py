"""Functions of the public API: load, plan and run an experiment, run and compare a sweep, export a run."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flows.config.experiment import Experiment
from flows.config.loading import load_with
from flows.config.sweep import Sweep

if TYPE_CHECKING:
    from flows.planning.run import Plan
    from flows.reporting.schema import RunReport
    from flows.sweep_plan import SweepPlan

C = TypeVar("C", Experiment, Sweep)


def load(path: str | PathLike[str], changes: Mapping[str, Any] | None = None, kind: type[C] = Experiment) -> C:  # type: ignore[assignment]
    """Read an experiment file, or a sweep file with `kind=ninefold.Sweep`, and return it validated.

    `changes` are values by field, such as `{"labelling.queries": 64}`. Paths in the file are relative to it. Raises
    ConfigError naming the field, the rule and the remedy.
    """
    return load_with(kind, Path(path), dict(changes or {}))


def plan(experiment: Experiment | Sweep) -> "Plan | SweepPlan":
    """Return what an experiment or a sweep will do and cost; nothing is bought or written. `print` shows it.

    Raises ConfigError for whatever can be known to fail before money is spent.
    """
    from flows.runtime.environment import prepare_libraries

    prepare_libraries()
    if isinstance(experiment, Sweep):
        from flows.sweep_plan import plan_sweep

        return plan_sweep(experiment)
    from flows.planning.run import plan as plan_run

    return plan_run(experiment)


def run(experiment: Experiment) -> "RunReport":
    """Run an experiment and return its report, which also lies in the reports folder and in MLflow.

    It uses the Prefect server of `ninefold up` or of NINEFOLD_PREFECT_URL, or starts one that ends with this process. What
    an earlier run has done comes from the cache, and no label is bought twice. Raises NinefoldError.
    """
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    plan(experiment)
    with admitted():
        from flows.proxy_reward import proxy_reward

        return proxy_reward(experiment)


def sweep(sweep: Sweep, *, workers: bool = False) -> dict[str, Any]:
    """Run a sweep, here or on the machines of `ninefold worker`, and return its report: one row for each arm.

    Raises NinefoldError, after every other arm has run, if an arm has failed.
    """
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    plan(sweep)
    with admitted():
        from flows.sweep import run_sweep

        report: dict[str, Any] = run_sweep(sweep, workers)
    return report


def compare(name: str) -> dict[str, Any]:
    """Return the comparison of a finished sweep's arms with the random strategy, at equal budget and paired by seed.

    Raises ConfigError if there is no such sweep, or no arm has finished.
    """
    from flows.reporting.comparison import compare as compared

    return compared(name)


def export(name: str, folder: str | PathLike[str]) -> list[Path]:
    """Write a finished run's preference dataset, evaluator and policy into a new folder; return the folders written.

    Raises ConfigError if there is no such run, or the folder holds anything.
    """
    from flows.runtime.environment import configure_process

    configure_process()
    from flows.reporting.export import export as write
    from flows.reporting.export import load_finished_run

    return write(load_finished_run(name), Path(folder))
