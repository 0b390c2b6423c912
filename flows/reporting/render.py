"""Shared style and tables of all report pages, as Markdown and HTML."""

from collections.abc import Sequence
from html import escape

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d2330}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.3rem .7rem;border-bottom:1px solid #dde1e8}
th{white-space:nowrap;font-weight:600}
img{width:32%;min-width:18rem;margin:.5rem .5% 0 0}
.note{background:#fff6dc;padding:.4rem .8rem;margin:.3rem 0}
.wide{width:100%;max-width:60rem}
"""


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells as Markdown."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells as HTML, escaped."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
