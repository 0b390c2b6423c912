"""`ninefold labels list | export | import | adopt | queue`: the label ledger and the annotation queue."""

import json
import math
import os
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from flows.cli.terminal import UserError, confirm

if TYPE_CHECKING:
    from models.labelling.human_queue import Item
    from models.labelling.label_studio import Line
    from models.ledger.ledger import Ledger

app = typer.Typer(no_args_is_help=True, help="The ledger of every label bought.")


@app.command("list", epilog="Example: `ninefold labels list --status quarantined`")
def labels_list(
    status: Annotated[str | None, typer.Option(help="reserved, labelled, quarantined or lost.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show, newest last.")] = 20,
) -> None:
    """Show what was bought: status, score, price, tuple."""
    from models.core.money import dollars

    rows = list(open_ledger().rows(status=_status(status)))
    for row in rows[-limit:]:
        score = "      –" if row["score"] is None else f"{row['score']:7.3f}"
        texts = " → ".join(" ".join(row[key].split())[:48] for key in ("prompt", "response"))
        typer.echo(f"{row['id']:6} {row['status']:11} {score} {dollars(row['micro_usd']):>9}  {texts}")
    paid = sum(row["micro_usd"] for row in rows)
    typer.echo(f"{len(rows)} queries, {dollars(paid)}; showing the last {min(limit, len(rows))}")


QueueOption = Annotated[bool, typer.Option("--queue", help="Write the open questions, for people to fill in.")]
ServerOption = Annotated[str, typer.Option(help="A Label Studio server; its key is read from LABEL_STUDIO_API_KEY.")]


@app.command("export", epilog="Example: `ninefold labels export queue.csv --queue --annotator ada`")
def labels_export(
    file: Annotated[
        Path | None, typer.Argument(help="A .csv or .jsonl file; with --queue also .json (Label Studio).")
    ] = None,
    queue: QueueOption = False,
    annotator: Annotated[str, typer.Option(help="Who will fill it in; leaves out what they have judged.")] = "",
    label_studio: ServerOption = "",
) -> None:
    """Write every settled label to a file, for another ledger; or the open questions, for people."""
    from models.core.data import SETTLED
    from models.labelling.human_queue import Queue
    from models.labelling.label_files import BoughtLabel, write_rows
    from models.labelling.queue_files import queue_rows

    if (file is None) == (not label_studio):
        raise UserError("name a file to write, or --label-studio URL for the open questions")
    items = Queue(open_ledger()).items() if queue or label_studio else []
    if label_studio:
        _need(items)
        from models.labelling.label_studio import LabelStudio

        number = LabelStudio(label_studio).new_project(f"Ninefold {date.today().isoformat()}", items)
        typer.echo(f"{len(items)} questions are in project {number}: {label_studio.rstrip('/')}/projects/{number}")
        typer.echo(f"then: ninefold labels import --label-studio {label_studio} --project {number}")
    elif file is not None and queue:
        _need(items)
        if file.suffix == ".json":
            _export_tasks(file, items)
        else:
            rows, columns = queue_rows(items, annotator)
            write_rows(file, rows, columns)
            typer.echo(
                f"{len(rows)} questions written to {file}: fill in annotator and score (? where nobody can tell)"
            )
    elif file is not None:
        rows = [
            {c: row[c] for c in BoughtLabel.model_fields} for row in open_ledger().rows() if row["status"] in SETTLED
        ]
        write_rows(file, rows, list(BoughtLabel.model_fields))
        typer.echo(f"{len(rows)} labels written to {file}")


def _need(items: "list[Item]") -> None:
    if not items:
        raise UserError("no question waits for people: start a run whose oracle is of kind human")


def _export_tasks(file: Path, items: "list[Item]") -> None:
    from models.labelling.label_studio import config_of, tasks_of

    config = file.with_suffix(".xml")
    config.write_text(config_of(items), encoding="utf-8")
    file.write_text(json.dumps(tasks_of(items), ensure_ascii=False, indent=1), encoding="utf-8")
    typer.echo(f"{len(items)} tasks written to {file}; the labelling interface of the project is {config}")


@app.command("import", epilog="Example: `ninefold labels import queue.csv`")
def labels_import(
    file: Annotated[Path | None, typer.Argument(help="What export wrote, or a JSON export of Label Studio.")] = None,
    label_studio: ServerOption = "",
    project: Annotated[int, typer.Option(help="The project on that server.")] = 0,
) -> None:
    """Take over labels paid for elsewhere, or what people have filled in; all rows or none, and runs that wait go on."""
    from models.labelling.label_files import bought_labels, read_lines

    if (file is None) == (not label_studio) or bool(label_studio) != bool(project):
        raise UserError("name a file, or --label-studio URL and --project NUMBER")
    if file is None:
        from models.labelling.label_studio import LabelStudio

        _import_judgements(label_studio, LabelStudio(label_studio).annotations(project))
        return
    lines = read_lines(file)
    if file.suffix == ".json" or any("item" in line.row for line in lines[:1]):
        _import_judgements(file, lines)
        return
    labels = bought_labels(file, lines)
    taken = open_ledger().import_labels([(label.question, label.answer) for label in labels])
    typer.echo(f"{taken} labels taken over, {len(labels) - taken} were known already")
    _resume()


def _import_judgements(source: object, lines: "list[Line]") -> None:
    from models.labelling.human_queue import Queue
    from models.labelling.queue_files import judgements

    queue = Queue(open_ledger())
    found = queue.record(judgements(source, lines, {item.id: item for item in queue.items()}))
    told = {
        "new": found.new,
        "known already": found.known,
        "changed": found.changed,
        "no longer asked for": found.surplus,
    }
    typer.echo(
        f"judgements: {', '.join(f'{number} {what}' for what, number in told.items())}; {found.settled} questions settled"
    )
    labels_queue()
    if found.settled or not queue.items():  # also when the import before could not resume what waits
        _resume()


def _resume() -> None:
    """Let the runs that wait go on; no Prefect server is started where there has been none."""
    from flows.runtime.environment import configure_process, prepare_flows
    from flows.runtime.prefect_server import admitted
    from tasks.engine.settings import settings

    configure_process()
    embedded = os.environ.get("PREFECT_HOME") == str(settings().prefect_home) and "PREFECT_API_URL" not in os.environ
    if embedded and not (settings().prefect_home / "prefect.db").exists():
        return
    prepare_flows()
    from flows.steps.human import resume_waiting

    with admitted():
        resumed = resume_waiting()
    for name in resumed:
        typer.echo(f"run {name} goes on, or waits again for what is missing")


@app.command("retry", epilog="Example: `ninefold labels retry quickstart`, then `ninefold rerun quickstart`")
def labels_retry(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name, as MLflow shows it, or its id.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before buying.")] = False,
) -> None:
    """Ask again what a run's oracles have not answered: replies without a verdict, and calls that brought no reply.

    It is paid on top of the run's caps. The run itself then goes on with `ninefold rerun`.
    """
    from flows.runtime.environment import configure_process

    configure_process()
    from flows.tracking.lookup import find_run
    from models.core.money import dollars
    from models.labelling.label import LabellingSession
    from models.labelling.unanswered import account_of_retries, retry_price, retry_rows
    from models.ledger.reopening import unanswered

    found, ledger = find_run(run), open_ledger()
    config = found.experiment
    rubric = config.labelling.rubric
    known = {one.fingerprint(): one for one in config.oracles.values() if one.annotation_task(rubric) is None}
    work, others = [], 0
    for account in found.accounts:
        rows = [row for name in (account, account_of_retries(account)) for row in unanswered(ledger, name)]
        asked_of = {row["oracle"] for row in rows} & known.keys()
        others += sum(row["oracle"] not in known for row in rows)
        for oracle in sorted(asked_of):
            session = LabellingSession(
                ledger,
                known[oracle],
                rubric,
                account,
                patience=config.labelling.patience,
                least_usable=config.labelling.least_usable,
            )
            work.append((session, [row for row in rows if row["oracle"] == oracle]))
    if others:
        typer.echo(f"{others} questions were asked of people, or of another oracle than the run's now: they are left")
    if not work:
        typer.echo(
            f"every question of run {config.name} that its oracles were asked has an answer: nothing to ask again"
        )
        return
    prices = [retry_price(session, rows) for session, rows in work]
    expected, most = (sum(price[place] for price in prices) for place in (0, 1))
    counts = Counter(row["status"] for _, rows in work for row in rows)
    typer.echo(
        f"{counts['quarantined']} questions without a verdict and {counts['lost']} without a reply are asked again, on top "
        f"of what they have cost: expected {dollars(expected)}, at most {dollars(most)}"
    )
    confirm(yes=yes)
    asked = answered = paid = 0
    for (session, rows), price in zip(work, prices, strict=True):
        made = retry_rows(session, rows, most=price.most, concurrency=config.labelling.concurrency)
        asked, answered, paid = asked + made.asked, answered + made.answered, paid + made.micro_usd
    typer.echo(f"{answered} of {asked} now have a verdict, for {dollars(paid)}; next: ninefold rerun {config.name}")


@app.command("adopt", epilog="Example: `ninefold labels adopt experiment.yaml --from llm_judge-0123456789abcdef`")
def labels_adopt(
    file: Annotated[Path, typer.Argument(help="An experiment file (YAML), whose labelling.oracle takes the labels.")],
    source: Annotated[
        str, typer.Option("--from", metavar="FINGERPRINT", help="Whose labels; without, show what the ledger holds.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take over labels that the ledger holds under another identity of an oracle, so that they are not bought again."""
    from flows.config.experiment import Experiment
    from flows.config.loading import load
    from models.core.money import dollars
    from models.labelling.adopt import adopt, holdings, labels_of

    labelling, ledger = load(Experiment, file).labelling, open_ledger()
    kind, oracle, criterion = labelling.oracle.kind_name(), labelling.oracle.fingerprint(), labelling.rubric.digest()
    if not source:
        for held in holdings(ledger):
            mine = "  this experiment's" if (held.oracle, held.criterion) == (oracle, criterion) else ""
            typer.echo(
                f"{held.oracle}  criterion {held.criterion}  {held.labels} labels  {dollars(held.micro_usd)}{mine}"
            )
        typer.echo(
            f"the experiment's oracle is {oracle}, its criterion {criterion}; --from FINGERPRINT takes labels over"
        )
        return
    if source == oracle:
        raise UserError(f"{source} is the experiment's oracle already: name another, as listed without --from")
    if source.rpartition("-")[0] != kind:
        raise UserError(f"labels of {source} are not those of a {kind}: name a fingerprint of this kind")
    labels = labels_of(ledger, source, criterion=criterion)
    paid = sum(int(str(answer["micro_usd"])) for _, answer in labels)
    typer.echo(f"{len(labels)} labels of {source} ({dollars(paid)} when they were bought) will count as {oracle}'s:")
    for question, _ in labels[:3]:
        texts = (" ".join(text.split())[:48] for text in (question.prompt, question.response))
        typer.echo(f"  {' → '.join(texts)}")
    confirm(yes=yes)
    taken = adopt(ledger, labels, oracle)
    typer.echo(f"{taken} labels taken over at no price, {len(labels) - taken} were known already")


@app.command("queue", epilog="Example: `ninefold labels queue`")
def labels_queue(
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw", help="Empty it: undo what nobody has judged, settle the rest. Stop runs that wait first."
        ),
    ] = False,
) -> None:
    """Show what waits for people, and how they agree."""
    from models.core.data import SETTLED
    from models.labelling.human_queue import Queue
    from models.oracles.human import Human

    queue = Queue(open_ledger())
    if withdraw:
        undone, settled = queue.withdraw()
        typer.echo(f"{undone} questions withdrawn, {settled} settled by what people have said so far")
    items = queue.items()
    typer.echo(f"{len(items)} questions open, {sum(item.missing for item in items)} judgements missing")
    panels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in queue.ledger.rows():
        if row["status"] in SETTLED:
            panels[row["oracle"], row["criterion"]].append(row["raw"])
    for (panel, criterion), raws in panels.items():
        facts = Human(micro_usd=0).diagnostics(raws)
        if facts["judgements"]:
            alpha = facts["krippendorff_alpha"]
            known = "unknown: no two have judged the same, or all alike" if math.isnan(alpha) else f"{alpha:.2f}"
            typer.echo(
                f"{panel}, criterion {criterion}: {facts['judgements']:.0f} judgements settled, Krippendorff's alpha {known}"
            )


def open_ledger() -> "Ledger":
    """Return this installation's ledger."""
    from tasks.engine.ledgers import open_ledger as opened

    return opened()


def _status(status: str | None) -> Any:  # noqa: ANN401
    from models.ledger.entries import QueryStatus

    known = get_args(QueryStatus)
    if status is not None and status not in known:
        raise UserError(f"--status must be one of {', '.join(known)}, got {status!r}")
    return status
