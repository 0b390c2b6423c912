"""`ninefold sweep | worker | compare | init-storage`: run sweeps, here or on workers, and compare their arms."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import Overrides


def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML).")],
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Show the arms, what they share and cost; run nothing.")
    ] = False,
    workers: Annotated[
        bool, typer.Option("--workers", help="Run the arms on the machines of `ninefold worker`.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Run every arm of a sweep; what an earlier execution has done comes from the cache, and only what failed runs again."""
    from flows.runtime.environment import prepare_flows, prepare_libraries
    from flows.runtime.prefect_server import admitted

    prepare_libraries() if only_plan else prepare_flows()
    if workers and not only_plan:
        from flows.runtime.workers import check_shared

        check_shared()
    from flows.config.loading import load
    from flows.config.sweep import Sweep
    from flows.sweep_plan import plan_sweep

    given = load(Sweep, file, overrides)
    for line in plan_sweep(given).lines():
        typer.echo(line)
    if only_plan:
        return
    from flows.reporting.storage import report_folder
    from flows.reporting.sweep_text import notes, table
    from flows.sweep import Incomplete, run_sweep
    from flows.tracking.links import curves_page, runs_page

    try:
        with admitted():
            report = run_sweep(given, workers)
    except Incomplete as missing:
        report = missing.report
    _show(table(report), notes(report))
    typer.echo(f"\nreport      {report_folder(report['name'])}/sweep.html (also .md, .csv and .json)")
    typer.echo(f"runs        ninefold up, then open {runs_page(report['name'])}")
    typer.echo(f"curves      {curves_page(report['name'])}")
    if any(arm["failure"] for arm in report["arms"]):
        raise typer.Exit(1)


def worker(
    name: Annotated[str, typer.Option(help="What the Prefect pages call it.")] = "",
    runs: Annotated[
        int, typer.Option(min=1, help="Arms at once; two torch jobs on two cores are slower than one.")
    ] = 1,
    health_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Answer http://127.0.0.1:PORT/health while it works; 0: do not.")
    ] = 0,
) -> None:
    """Take arms of `ninefold sweep --workers` on this machine until Ctrl-C; store, ledger, MLflow and Prefect are shared.

    Keys of oracles and of the store are this machine's own: export them first. Files that experiments name are found here.
    """
    from flows.runtime.environment import configure_process

    configure_process()
    from flows.runtime.workers import work

    raise typer.Exit(work(name, runs, health_port))


def init_storage() -> None:
    """Make what machines share, where it is missing: the bucket, and the ledger's tables, by a role that owns them."""
    from flows.runtime.environment import prepare_libraries

    prepare_libraries()
    from tasks.engine.ledgers import open_ledger
    from tasks.engine.settings import settings
    from tasks.engine.store import store

    store().make_root()
    typer.echo(f"store   {settings().store_url}")
    open_ledger()
    typer.echo(f"ledger  {settings().ledger_url.rpartition('@')[2]}")


def compare(name: Annotated[str, typer.Argument(help="The sweep's name.")]) -> None:
    """Hold a sweep's arms against random: intervals, paired tests, learning curves, Pareto fronts, variance by seed."""
    from flows.runtime.environment import configure_process

    configure_process()
    from flows.reporting.comparison import compare as compared
    from flows.reporting.comparison_text import notes, table
    from flows.reporting.publish import publish
    from flows.tracking.links import curves_page

    report = compared(name)
    folder = publish(report)
    _show(table(report), notes(report))
    typer.echo(f"\ncomparison  {folder}/compare.html (also .md and .json, and the pictures)")
    typer.echo(f"MLflow      ninefold up, then open {curves_page(name)}")


def _show(table: tuple[Sequence[str], Sequence[Sequence[str]]], notes: Sequence[str]) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from flows.reporting.render import markdown_table

    Console().print(Markdown(markdown_table(*table)))
    for note in notes:
        typer.echo(f"note: {note}")
