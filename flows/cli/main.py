"""Entry point of the `ninefold` command, and its commands for single runs and for servers."""

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import evaluate, init, kinds, labels, oracle_checks, study, sweep
from flows.cli.terminal import Overrides, UserError, table
from models.core.errors import NinefoldError

if TYPE_CHECKING:
    from flows.planning.run import Plan
    from flows.reporting.schema import RunReport

app = typer.Typer(
    name="ninefold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Spend a few hundred oracle judgements where they are worth most, and train a policy on nine times as many pairs.",
    epilog="Example: `ninefold run deployments/experiments/quickstart.yaml --set labelling.queries=64`",
)
labels.app.add_typer(oracle_checks.app)
app.add_typer(labels.app, name="labels")
app.add_typer(study.app, name="bench")
app.command("sweep", epilog="Example: `ninefold sweep deployments/sweeps/quickstart.yaml --plan`")(sweep.sweep)
app.command("worker", epilog="Example: `ninefold worker --name lab-3`")(sweep.worker)
app.command("init-storage", epilog="Example: `NINEFOLD_SETTINGS=owner.env ninefold init-storage`")(sweep.init_storage)
app.command("compare", epilog="Example: `ninefold compare quickstart-sweep`")(sweep.compare)
app.command("init", epilog="Example: `ninefold init mine --judge gpt-4o-mini --prices 0.15,0.60`")(init.init)
app.command("kinds", epilog="Example: `ninefold kinds acquisition`")(kinds.kinds)
app.command("evaluate", epilog="Example: `ninefold evaluate quickstart --suite mmlu --limit 20`")(evaluate.evaluate)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ninefold {version('ninefold')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


File = Annotated[Path, typer.Argument(help="An experiment file (YAML).")]

DEPLOYMENTS = Path("deployments/prefect.yaml")
_INTERRUPTED = 130  # what typer makes of Ctrl-C


@app.command(epilog="Example: `ninefold run deployments/experiments/quickstart.yaml --set seeds.selection=1`")
def run(file: File, overrides: Overrides = None) -> None:
    """Run one experiment; what an earlier run has done already comes from the cache."""
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    planned = _planned(file, overrides)
    _show_plan(planned)
    with admitted():
        from flows.proxy_reward import proxy_reward

        report = proxy_reward(planned.experiment)
    _show_report(report)


@app.command(epilog="Example: `ninefold rerun quickstart --from fit_evaluator`")
def rerun(
    name: Annotated[str, typer.Argument(help="The run's name, as MLflow shows it, or its id.")],
    stage: Annotated[str, typer.Option("--from", metavar="STAGE", help="Execute this stage and what follows.")] = "",
) -> None:
    """Run an experiment again: what failed and what follows it, or all from a chosen stage on. No label is bought twice."""
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    from flows.proxy_reward import proxy_reward
    from flows.tracking.lookup import find_run
    from tasks.engine.caching import check_stage

    found = find_run(name)
    check_stage(stage)
    with admitted():
        report = proxy_reward(found.experiment, sweep=found.sweep, restart_from=stage, purse=found.purse)
    _show_report(report)
    executed = [run.name for run in report.stages if not run.cached]
    typer.echo(f"executed    {', '.join(executed) or 'nothing: all was in the cache'}")
    if stage and stage not in executed:
        stages = dict.fromkeys(run.name for run in report.stages)
        typer.echo(f"note: this run has no stage {stage}: it has {', '.join(stages)}")


@app.command(epilog="Example: `ninefold plan deployments/experiments/quickstart.yaml --set labelling.queries=64`")
def plan(
    file: File,
    overrides: Overrides = None,
    ask: Annotated[bool, typer.Option("--ask", help="Then ask each oracle one question, which is bought.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before buying.")] = False,
) -> None:
    """Show the stages, queries, money and rough time of a run, and spend nothing; with --ask, whether its oracles answer."""
    planned = _planned(file, overrides)
    _show_plan(planned)
    if ask and not oracle_checks.try_oracles(planned.experiment, yes=yes):
        raise typer.Exit(1)


@app.command(epilog="Example: `ninefold report quickstart`")
def report(
    name: Annotated[str, typer.Argument(help="The experiment's name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json instead of the page.")] = False,
) -> None:
    """Show the report of the last finished run of an experiment."""
    from flows.reporting.run_text import headlines, warnings
    from flows.reporting.storage import read_report, report_folder, reports_with

    found = read_report(name)
    if found is None:
        known = reports_with("report.json")
        if name in known:
            raise UserError(f"report {name!r} is a study's, or of another version: {report_folder(name)} has its pages")
        raise UserError(f"no report {name!r}: there are {', '.join(known) or 'none yet; run an experiment first'}")
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table(found.name, headlines(found))
    for warning in warnings(found):
        typer.echo(f"note: {warning}")


@app.command(epilog="Example: `ninefold export quickstart --to exported`")
def export(
    name: Annotated[str, typer.Argument(help="The run's name.")],
    to: Annotated[Path, typer.Option(help="A new folder.")] = Path("exported"),
    push: Annotated[
        str, typer.Option(metavar="ORG/NAME", help="Also upload, as private repositories NAME-preferences and so on.")
    ] = "",
) -> None:
    """Write a finished run's preference data, evaluator and policy as folders that datasets and transformers load."""
    from flows.runtime.environment import configure_process

    configure_process()
    from flows.reporting import export as exporting

    run = exporting.load_finished_run(name)
    if push:
        exporting.check_push(run.experiment)
    folders = exporting.export(run, to)
    for folder in folders:
        typer.echo(f"{folder.name:12}{folder}")
    for link in exporting.push(run, folders, push) if push else []:
        typer.echo(f"pushed      {link}")


@app.command(epilog="Example: `ninefold reference > docs/reference/configuration.md`")
def reference() -> None:
    """Print every field of experiments, sweeps and studies as Markdown: type, default, what it is."""
    from flows.cli.reference import reference as written

    typer.echo(written(), nl=False)


@app.command(epilog="Example: `ninefold doctor`, or `ninefold doctor --oracles experiment.yaml`")
def doctor(
    oracles: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Ask each oracle of this experiment one question, which is bought."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before buying.")] = False,
) -> None:
    """Check versions, ports, disk and known-bad combinations, and say the remedy; with --oracles, whether they answer."""
    from flows.runtime.doctor import examine

    findings = examine()
    for finding in findings:
        typer.echo(f"{'ok ' if finding.ok else 'BAD'} {finding.what}{'' if finding.ok else f' — {finding.remedy}'}")
    well = all(finding.ok for finding in findings)
    if oracles is not None:
        from flows.config.experiment import Experiment
        from flows.config.loading import load

        well &= oracle_checks.try_oracles(load(Experiment, oracles), yes=yes)
    if not well:
        raise typer.Exit(1)


@app.command(epilog="Example: `ninefold up --detach`, and later `ninefold down`")
def up(
    mlflow_port: Annotated[
        int | None, typer.Option(help="MLflow's on 127.0.0.1; else NINEFOLD_MLFLOW_PORT, or 5000.")
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(help="Prefect's on 127.0.0.1; else NINEFOLD_PREFECT_PORT, or 4200.")
    ] = None,
    deployments: Annotated[Path, typer.Option(help="Deployments for Prefect's pages.")] = DEPLOYMENTS,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when all is up; it stays up.")] = False,
) -> None:
    """Serve the Prefect and MLflow pages on 127.0.0.1, with the project's deployments and a worker that runs them."""
    from flows.runtime.environment import configure_process

    configure_process()
    from flows.runtime.servers import Ports, servers, start
    from flows.runtime.supervisor import serve
    from tasks.engine.settings import settings

    if (found := servers()) is not None:
        typer.echo("\n".join(["up already:", *found.lines()]))
        return
    ports = Ports(mlflow_port or settings().mlflow_port, prefect_port or settings().prefect_port)
    for line in start(ports, deployments).lines() if detach else serve(ports, deployments, _runs_page):
        typer.echo(line)


def _runs_page(port: int) -> str:
    from flows.tracking.links import runs_page

    return runs_page(port=port)


@app.command("env", epilog='Example: `eval "$(ninefold env)"`, then `prefect deployment ls`')
def environment() -> None:
    """Print what lets Prefect's own command, or a script, use the server of `ninefold up`: its address and password."""
    from flows.runtime.servers import servers

    if (found := servers()) is None:
        raise UserError("nothing is up: start it with `ninefold up --detach`")
    typer.echo(f"export PREFECT_API_URL={found.api}\nexport PREFECT_API_AUTH_STRING={found.password}")


@app.command(epilog="Example: `ninefold down`")
def down() -> None:
    """Stop what `ninefold up` has started, and the worker's run with it: nothing paid for is lost, the run can go on.

    Runs in terminals that use its server stop too; the same command goes on with them.
    """
    from flows.runtime.servers import stop

    typer.echo("stopped" if stop() else "nothing is up")


def main() -> None:
    """Entry point: errors of the user's making are one line on stderr and exit status 2; Ctrl-C is 130."""
    gc.set_threshold(100_000, 20)  # of objects: at 700 an import of a million objects is looked through again and again
    try:
        status = app(standalone_mode=False) or 0
    except Exception as error:
        status = _INTERRUPTED if _interrupted(error) else _tell(error)
    if status == _INTERRUPTED:
        typer.echo("stopped: every label paid for is kept; the same command goes on from here", err=True)
    sys.exit(status)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error came of Ctrl-C: Prefect, caught while it sets a task up, raises one of its own over it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _tell(error: Exception) -> int:
    """Print an error of the user's making and return its exit status; raise any other again."""
    told = isinstance(error, (NinefoldError, OSError))
    usage = type(error).__module__.startswith(("click", "typer"))
    # NINEFOLD_TRACEBACK shows where an error comes from that may be ours
    if not (told or usage) or os.environ.get("NINEFOLD_TRACEBACK"):
        raise error
    typer.echo(f"ninefold: {error.format_message() if hasattr(error, 'format_message') else error}", err=True)
    return 2


def _planned(file: Path, overrides: list[str] | None) -> "Plan":
    from flows.runtime.environment import prepare_libraries

    prepare_libraries()
    from flows.config.experiment import Experiment
    from flows.config.loading import load
    from flows.planning.run import plan as make_plan

    return make_plan(load(Experiment, file, overrides))


def _show_report(report: "RunReport") -> None:
    """Print what a run has found, and where more of it is."""
    from flows.reporting.run_text import headlines, warnings
    from flows.reporting.storage import report_folder
    from flows.tracking.links import runs_page

    typer.echo()
    table(f"{report.name}: what {report.queries} queries bought", headlines(report))
    for warning in warnings(report):
        typer.echo(f"note: {warning}")
    typer.echo(f"\nreport      {report_folder(report.name)}/report.html (also .md and .json)")
    typer.echo(f"MLflow      ninefold up, then open {runs_page()}")


def _show_plan(planned: "Plan") -> None:
    for line in planned.lines():
        typer.echo(line)
    for step in planned.steps:
        typer.echo(f"  {step.stage:30} {step.work:40} ~{step.seconds:4.0f} s")
    basis = "measured on two cores" if planned.measured else "proportions only, measured with another model"
    typer.echo(f"  {'in all':71} ~{planned.seconds / 60:4.1f} min\n  times are {basis}\n")


if __name__ == "__main__":
    main()
