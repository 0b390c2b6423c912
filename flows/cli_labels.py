"""`ninefold labels list | export | import | drift`: the ledger of every label bought."""

import csv
import json
import math
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.terminal import UserError

if TYPE_CHECKING:
    from models.ledger import Ledger

app = typer.Typer(no_args_is_help=True, help="The ledger of every label bought.")


@app.command("list", epilog="Example: `ninefold labels list --status quarantined`")
def labels_list(
    status: Annotated[str | None, typer.Option(help="reserved, labelled, quarantined or lost.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show, newest last.")] = 20,
) -> None:
    """Show what was bought: status, score, price, tuple."""
    from models.cost import dollars

    rows = list(_ledger().rows(status=_status(status)))
    for row in rows[-limit:]:
        score = "      –" if row["score"] is None else f"{row['score']:7.3f}"
        texts = " → ".join(" ".join(row[key].split())[:48] for key in ("prompt", "response"))
        typer.echo(f"{row['id']:6} {row['status']:11} {score} {dollars(row['micro_usd']):>9}  {texts}")
    paid = sum(row["micro_usd"] for row in rows)
    typer.echo(f"{len(rows)} queries, {dollars(paid)}; showing the last {min(limit, len(rows))}")


_COLUMNS = [
    "oracle",
    "criterion",
    "prompt",
    "response",
    "status",
    "score",
    "micro_usd",
    "tokens",
    "raw",
    "account",
]
_ASKED = _COLUMNS[:4]


@app.command("export", epilog="Example: `ninefold labels export labels.csv`")
def labels_export(file: Annotated[Path, typer.Argument(help="A .csv or .jsonl file to write.")]) -> None:
    """Write every settled label to a file, to be imported into another ledger."""
    rows = [{c: row[c] for c in _COLUMNS} for row in _ledger().rows() if row["status"] in {"labelled", "quarantined"}]
    if file.suffix not in {".csv", ".jsonl"}:
        raise UserError(f"{file} must end in .csv or .jsonl")
    temporary = file.with_name(f".{file.name}")
    with temporary.open("w", encoding="utf-8", newline="") as out:
        if file.suffix == ".csv":
            writer = csv.DictWriter(out, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        else:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    temporary.replace(file)
    typer.echo(f"{len(rows)} labels written to {file}")


@app.command("import", epilog="Example: `ninefold labels import labels.csv`")
def labels_import(file: Annotated[Path, typer.Argument(help="A file written by export.")]) -> None:
    """Take over labels paid for elsewhere; those the ledger holds already stay as they are."""
    from models.ledger_tables import Question

    rows = _read_labels(file)
    ledger = _ledger()
    taken = ledger.adopt([(Question(*(row[c] for c in _ASKED)), _bought(row)) for row in rows])
    typer.echo(f"{taken} labels taken over, {len(rows) - taken} were known already")


@app.command(
    "drift", epilog="Example: `ninefold labels drift deployments/experiments/quickstart.yaml --sample 20 --yes`"
)
def labels_drift(
    file: Annotated[Path, typer.Argument(help="The experiment whose expert is asked.")],
    sample: Annotated[int, typer.Option(min=2, help="Labels to ask for again.")] = 20,
    occasion: Annotated[str, typer.Option(help="A name for this check; today's date if not given.")] = "",
    max_micro_usd: Annotated[int, typer.Option(min=0, help="Micro-dollars that it may cost.")] = 1_000_000,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before buying.")] = False,
) -> None:
    """Ask the expert again about labels bought before, and say how it agrees with itself."""
    from flows.config import load
    from flows.experiment import Experiment
    from models.cost import dollars
    from models.drift import ask_again, sample_of
    from models.labelling import Desk
    from models.oracles.base import a_token_to_four_bytes

    labelling = load(Experiment, file).labelling
    labelling.oracle.check()
    desk = Desk(_ledger(), labelling.oracle, labelling.rubric, "drift")
    rows = sample_of(list(desk.ledger.rows(status="labelled")), desk, sample)
    if not rows:
        raise UserError(f"the ledger holds no label of {labelling.oracle.label()!r}: run the experiment first")
    asked = [(row["prompt"], row["response"]) for row in rows]
    price = sum(labelling.oracle.expected(*each, a_token_to_four_bytes).micro_usd for each in asked)
    typer.echo(f"{len(rows)} labels will be bought again, expected {dollars(price)}, at most {dollars(max_micro_usd)}")
    if not yes:
        typer.confirm("go on?", abort=True)
    named = occasion or date.today().isoformat()
    found = ask_again(rows, desk, occasion=named, max_micro_usd=max_micro_usd, workers=labelling.workers)
    typer.echo(
        f"{found.answered} of {found.asked} answered for {dollars(found.micro_usd)}: {found.same:.0%} the same score, "
        f"Spearman {found.spearman:.2f}, mean change {found.change.mean:+.3f} "
        f"[{found.change.low:+.3f}, {found.change.high:+.3f}]"
    )


def _ledger() -> "Ledger":
    from models.ledger import Ledger
    from tasks.settings import settings

    return Ledger(settings().ledger_url)


def _status(status: str | None) -> Any:  # noqa: ANN401
    known = ("reserved", "labelled", "quarantined", "lost")
    if status is not None and status not in known:
        raise UserError(f"--status must be one of {', '.join(known)}, got {status!r}")
    return status


def _bought(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": row["status"],
        "score": float(row["score"]) if row["status"] == "labelled" else None,
        "raw": str(row["raw"]),
        "tokens": int(row["tokens"]),
        "micro_usd": int(row["micro_usd"]),
    }


def _read_labels(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise UserError(f"{file} does not exist")
    with file.open(encoding="utf-8", newline="") as source:
        rows = (
            list(csv.DictReader(source))
            if file.suffix == ".csv"
            else [json.loads(line) for line in source if line.strip()]
        )
    for number, row in enumerate(rows, start=1):
        if missing := [column for column in _COLUMNS if column not in row]:
            raise UserError(f"{file}, row {number} lacks {missing}: import takes what export wrote")
        if row["status"] not in {"labelled", "quarantined"}:
            raise UserError(f"{file}, row {number} has status {row['status']!r}: labelled or quarantined")
        if row["status"] == "labelled" and not math.isfinite(
            float("nan" if row["score"] in {None, ""} else row["score"])
        ):
            raise UserError(f"{file}, row {number} is labelled and has no finite score: {row['score']!r}")
    return rows
