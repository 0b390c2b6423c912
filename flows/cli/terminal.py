"""Helpers of all commands: user errors, the --set option, tables, and the confirmation before money is spent."""

from typing import Annotated

import typer

from models.core.errors import NinefoldError

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, e.g. `dpo.beta=0.2`. May be repeated."),
]


class UserError(NinefoldError):
    """Something the user can put right; shown as one line, without a traceback."""


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print rows of (name, value) under a title."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        grid.add_row(name, value)
    Console().print(grid)


def confirm(*, yes: bool) -> None:
    """Ask whether to buy what was said; raise UserError if the answer is no, or nobody can be asked."""
    try:
        agreed = yes or typer.confirm("go on?")
    except typer.Abort:  # no terminal
        agreed = False
    if not agreed:
        raise UserError("not confirmed, so nothing was bought: --yes answers where nobody can be asked")
