"""`ninefold sweep`: many arms as one file."""

from pathlib import Path
from typing import Annotated

import typer


def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file (YAML).")],
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Show the arms, what they share and cost; run nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the sweep.")
    ] = None,
) -> None:
    """Run every arm of a sweep; what an earlier execution has done comes from the cache, and only what failed runs again."""
    from flows.environment import limit_threads, prepare

    limit_threads()
    from flows.config import load
    from flows.sweep import Sweep
    from flows.sweep_plan import plan_sweep

    given = load(Sweep, file, overrides)
    for line in plan_sweep(given).lines():
        typer.echo(line)
    if only_plan:
        return
    prepare()
    from rich.console import Console
    from rich.markdown import Markdown

    from flows.report import report_folder
    from flows.sweep_pages import markdown_table, notes
    from flows.sweep_run import run_sweep
    from flows.tracking import runs_url

    report = run_sweep(given)
    Console().print(Markdown(markdown_table(report)))
    for note in notes(report):
        typer.echo(f"note: {note}")
    typer.echo(f"\nreport      {report_folder(report['name'])}/sweep.html (also .md, .csv and .json)")
    typer.echo(f"MLflow      ninefold up, then open {runs_url()}")
    if any(arm["failure"] for arm in report["arms"]):
        raise typer.Exit(1)
