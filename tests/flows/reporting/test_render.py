"""Pages show the same in Markdown and in HTML, whatever stands in a cell."""

from html.parser import HTMLParser
from pathlib import Path

from flows.reporting.render import Facts, Notes, Page, Pictures, Table, markdown_table

HOSTILE = '<script>alert("x")</script> a|b\nc & d'
PAGE = Page(
    "a <b>",
    [
        Facts([("name", HOSTILE)]),
        Notes(["first", HOSTILE]),
        Pictures({"curves.png": 'the "curves"'}, wide=True),
        Table(("one", "two"), [("1", HOSTILE), ("3", "4")], heading="Rows"),
        Table(("none",), []),
    ],
)


class Tags(HTMLParser):
    """The tags of a page that are opened and never closed, and the texts of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag in ("td", "th", "p", "title", "h1"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "p", "title", "h1"):
            self.cells[-1] += data


def test_html_is_well_formed_and_shows_texts_as_they_are() -> None:
    tags = Tags()
    tags.feed(PAGE.html())
    assert tags.open == []
    assert "script" not in tags.seen
    texts = ["a <b> · Ninefold", "a <b>", "name", HOSTILE, "first", HOSTILE, "one", "two", "1", HOSTILE]
    assert tags.cells == [*texts, "3", "4", "none"]
    assert '<img class="wide" src="curves.png" alt="the &#34;curves&#34;">' in PAGE.html()


def test_markdown_keeps_rows_on_their_lines() -> None:
    cell = '<script>alert("x")</script> a\\|b c & d'
    assert PAGE.markdown().splitlines() == [
        *("# a <b>", "", "|  |  |", "|---|---|", f"| name | {cell} |", ""),
        *(
            "> first",
            ">",
            "> " + " ".join(HOSTILE.split()),
            "",
            '![the "curves"](curves.png)',
            "",
        ),
        *("## Rows", "", "| one | two |", "|---|---|", f"| 1 | {cell} |", "| 3 | 4 |", "", "| none |", "|---|"),
    ]
    assert markdown_table(["a"], [["x\\|y"]]).splitlines()[-1] == "| x\\|y |", "what is escaped stays"


def test_both_files_are_written(tmp_path: Path) -> None:
    PAGE.write(tmp_path, "report")
    assert (tmp_path / "report.md").read_text() == PAGE.markdown()
    assert (tmp_path / "report.html").read_text() == PAGE.html()
