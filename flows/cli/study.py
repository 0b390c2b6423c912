"""`ninefold bench label-efficiency | synthetic`: studies of label efficiency."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.terminal import Overrides, table

app = typer.Typer(no_args_is_help=True, help="Studies of what labels buy.")

FILE = Path("deployments/studies/alpaca_replay.yaml")


@app.command(
    "label-efficiency",
    epilog="Example: `ninefold bench label-efficiency --labels alpaca_eval_gpt4.parquet --set seeds=3`",
)
def label_efficiency(
    file: Annotated[Path, typer.Argument(help="A study file (YAML).")] = FILE,
    labels: Annotated[
        Path | None, typer.Option(envvar="NINEFOLD_RECORDED_LABELS", help="The table of recorded labels.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Draw every strategy's learning curve on labels that were paid for already; buys nothing."""
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    from flows.config.loading import load
    from flows.config.study import LabelEfficiency

    given = [*(overrides or []), *([f"labels.path={labels}"] if labels else [])]
    study = load(LabelEfficiency, file, given)
    for line in study.plan():
        typer.echo(line)
    from flows.label_efficiency import label_efficiency as run
    from flows.reporting.storage import report_folder
    from flows.reporting.study_text import headlines, notes

    with admitted():
        report = run(study)
    table(f"{report['name']}: what {max(report['budgets'])} labels buy", headlines(report))
    for note in notes(report):
        typer.echo(f"note: {note}")
    typer.echo(f"\nreport      {report_folder(report['name'])}/report.html (also .md and .json)")


@app.command(epilog="Example: `ninefold bench synthetic --seeds 20`")
def synthetic(seeds: Annotated[int, typer.Option(min=2, help="Paired worlds per regime.")] = 20) -> None:
    """Measure exact regret in a world whose utility is known: on-policy, off-policy and imbalanced pools."""
    from flows.runtime.environment import prepare_libraries

    prepare_libraries()
    from flows.reporting.storage import report_folder
    from flows.synthetic import headlines, synthetic_study

    report = synthetic_study(seeds)
    table(
        f"simulated labels, {seeds} worlds per regime: mean regret over {report['budgets']} labels", headlines(report)
    )
    typer.echo("A gain whose interval holds zero is no gain shown.")
    typer.echo(f"\nreport      {report_folder('synthetic')}/report.json")
