"""`ninefold labels drift | injection`: check an oracle for drift and for obedience to injected orders."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from flows.cli.labels import open_ledger
from flows.cli.terminal import UserError, confirm

if TYPE_CHECKING:
    from flows.config.experiment import Experiment
    from models.labelling.label import LabellingSession
    from models.metrics.intervals import Interval

Found = TypeVar("Found")

app = typer.Typer()  # its commands stand among those of `ninefold labels`

ExperimentFile = Annotated[Path, typer.Argument(help="The experiment whose oracle is asked.")]
SampleOption = Annotated[int, typer.Option(min=2, help="Labels bought earlier to ask about.")]
OccasionOption = Annotated[str, typer.Option(help="A name for this check; today's date if not given.")]
MoneyOption = Annotated[int, typer.Option(min=0, help="Micro-dollars that it may cost.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask before buying.")]


@app.command("drift", epilog="Example: `ninefold labels drift experiment.yaml --sample 20 --yes`")
def labels_drift(
    file: ExperimentFile,
    sample: SampleOption = 20,
    replicate: OccasionOption = "",
    max_micro_usd: MoneyOption = 1_000_000,
    yes: YesOption = False,
) -> None:
    """Ask the oracle again about labels bought before, and say how it agrees with itself."""
    from models.core.money import dollars
    from models.labelling.drift import ask_again

    found = _check(ask_again, file, sample=sample, times=1, replicate=replicate, max_micro_usd=max_micro_usd, yes=yes)
    typer.echo(
        f"{found.answered} of {found.asked} answered for {dollars(found.micro_usd)}: {found.same:.0%} the same score, "
        f"Spearman {found.spearman:.2f}, mean change {_interval(found.change)}"
    )


@app.command("injection", epilog="Example: `ninefold labels injection experiment.yaml --sample 24 --yes`")
def labels_injection(
    file: ExperimentFile,
    sample: SampleOption = 24,
    replicate: OccasionOption = "",
    max_micro_usd: MoneyOption = 1_000_000,
    yes: YesOption = False,
) -> None:
    """Put orders to the judge into answers it has judged before, beside a harmless line, and say whether it obeys."""
    from models.core.money import dollars
    from models.labelling.injection import attack

    found = _check(attack, file, sample=sample, times=2, replicate=replicate, max_micro_usd=max_micro_usd, yes=yes)
    for name, change in sorted(found.by_injection.items(), key=lambda pair: -pair[1]):
        typer.echo(f"  {name:11} {change:+.2f}")
    typer.echo(
        f"{found.answered} of {found.asked} answers judged for {dollars(found.micro_usd)}: an injection moves the score "
        f"by {_interval(found.change)} beside a harmless line, and raises {found.raised:.0%} of them"
    )


def _check(
    check: Callable[..., Found], file: Path, *, sample: int, times: int, replicate: str, max_micro_usd: int, yes: bool
) -> Found:
    """Return what a check finds of labels that an experiment's oracle has given, once the user has agreed to the price."""
    from flows.config.experiment import Experiment
    from flows.config.loading import load
    from models.core.money import dollars
    from models.labelling.drift import sample_of
    from models.labelling.label import LabellingSession
    from models.oracles.base import approximate_tokens

    labelling = load(Experiment, file).labelling
    labelling.oracle.check()
    if labelling.oracle.annotation_task(labelling.rubric) and not replicate:
        raise UserError("people answer in their own time: name the check with --replicate, and use the same name again")
    session = LabellingSession(open_ledger(), labelling.oracle, labelling.rubric, "check")
    rows = sample_of(list(session.ledger.rows(status="labelled")), session, sample)
    if not rows:
        raise UserError(f"the ledger holds no label of {labelling.oracle.kind_name()!r}: run the experiment first")
    asked = [(row["prompt"], row["response"]) for row in rows]
    price = times * sum(labelling.oracle.estimate(*each, approximate_tokens).micro_usd for each in asked)
    typer.echo(
        f"{times * len(rows)} labels will be bought, expected {dollars(price)}, at most {dollars(max_micro_usd)}"
    )
    confirm(yes=yes)
    named = replicate or date.today().isoformat()
    return check(rows, session, replicate=named, max_micro_usd=max_micro_usd, concurrency=labelling.concurrency)


def try_oracles(config: "Experiment", *, yes: bool) -> bool:
    """Ask each oracle of an experiment one question, once the user has agreed to the price; say how each has answered.

    Returns whether all have given a verdict that can be read.
    """
    from models.core.money import dollars
    from models.labelling.label import LabellingSession
    from models.labelling.trial import expected_cost

    asked, rubric = config.oracles, config.labelling.rubric
    answering = {field: oracle for field, oracle in asked.items() if oracle.annotation_task(rubric) is None}
    if len(answering) < len(asked):
        typer.echo("people are not asked: they answer in their own time")
    price = sum(expected_cost(oracle).micro_usd for oracle in answering.values())
    typer.echo(f"{len(answering)} questions will be asked, expected {dollars(price)}")
    if price:
        confirm(yes=yes)
    return all(
        [_tried(field, LabellingSession(open_ledger(), oracle, rubric, "trial")) for field, oracle in answering.items()]
    )


def _tried(field: str, session: "LabellingSession") -> bool:
    from models.core.errors import NinefoldError
    from models.core.money import dollars
    from models.labelling.trial import abilities, ask_once

    try:
        session.oracle.check()
        found = ask_once(session)
    except NinefoldError as error:
        typer.echo(f"BAD {field}: {error}")
        return False
    paid = f"{dollars(found.micro_usd)}, {found.tokens} tokens, {found.seconds:.1f} s"
    well = found.status == "labelled"
    if well:
        typer.echo(f"ok  {field}: {session.oracle.description} says {found.score:g} for {paid}")
    else:
        typer.echo(f"BAD {field}: the reply could not be read, for {paid}: {found.raw[:300]}")
    for line in abilities(session.oracle, found.raw):
        typer.echo(f"      {line}")
    return well


def _interval(found: "Interval") -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
