"""What the commands share: an error of the user's making, changes to a parameter file, and a table."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change a field, e.g. `dpo.beta=0.2`. May be repeated."),
]


class UserError(Exception):
    """Something the user can put right; shown as one line, without a traceback."""


def table(title: str, rows: list[tuple[str, str]]) -> None:
    """Print rows of (name, value) under a title."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows:
        grid.add_row(name, value)
    Console().print(grid)
