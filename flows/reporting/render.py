"""Render report pages, as Markdown and as HTML, from one description of what they show."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flows.reporting.storage import write_text

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Facts:
    """Names and values, one below the other."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """Rows of cells under titles."""

    kind: ClassVar[str] = "table"
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ""


@dataclass(frozen=True)
class Notes:
    """Sentences that a reader must know before believing the figures."""

    kind: ClassVar[str] = "notes"
    lines: Sequence[str]


@dataclass(frozen=True)
class Pictures:
    """Picture files that lie beside the page, each with what it shows."""

    kind: ClassVar[str] = "pictures"
    files: Mapping[str, str]
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """A page: its title, and its parts from top to bottom."""

    title: str
    parts: Sequence[Facts | Table | Notes | Pictures]

    def markdown(self) -> str:
        """Return the page as Markdown."""
        return _templates().get_template("page.md.j2").render(page=self).rstrip() + "\n"

    def html(self) -> str:
        """Return the page as one HTML file; whatever it shows is escaped."""
        return _templates().get_template("page.html.j2").render(page=self)

    def write(self, folder: Path, stem: str) -> None:
        """Write the page as STEM.md and STEM.html into a folder."""
        write_text(folder / f"{stem}.md", self.markdown())
        write_text(folder / f"{stem}.html", self.html())


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells as Markdown; a cell is one line, and its bars are escaped."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(_cell, cells))} |" for cells in rows)])


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["markdown_table"] = markdown_table
    return found
