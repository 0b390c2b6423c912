"""`ninefold kinds`: list every plugin, built in or of another package, where it comes from, and its fields."""

import json
from typing import Annotated

import typer

from flows.cli.terminal import table


def kinds(
    point: Annotated[str, typer.Argument(help="One extension point, such as `acquisition`; all without.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the kinds that an experiment may name, built in or of installed packages, with their fields."""
    from flows.config.experiment import EXTENSION_POINTS
    from models.core.errors import ConfigError
    from models.core.external import origin
    from models.core.registry import plugins_of

    if point and point not in EXTENSION_POINTS:
        raise ConfigError(f"no extension point {point!r}: there are {', '.join(EXTENSION_POINTS)}")
    found = {
        name: [
            {"kind": cls.model_fields["kind"].default, "from": origin(cls), "version": cls.version}
            | {"fields": [field for field in cls.model_fields if field != "kind"]}
            for cls in plugins_of(base)
        ]
        for name, base in EXTENSION_POINTS.items()
        if point in ("", name)
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, rows in found.items():
        table(name, [(row["kind"], f"{', '.join(row['fields']) or 'no fields'}\n{row['from']}") for row in rows])
