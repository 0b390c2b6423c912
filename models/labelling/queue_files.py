"""Annotation queue as files: rows to fill in, and judgements read back."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.core.errors import ConfigError
from models.labelling.human_queue import BETTER, SCALES, Item, Judgement
from models.labelling.label_files import taken
from models.labelling.label_studio import CANNOT_JUDGE, Line, texts


def queue_rows(items: Sequence[Item], annotator: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the queue as rows for one annotator to fill in, and its columns; without what they have judged already."""
    answer = {"annotator": annotator, "score": "", "note": ""}
    rows = [
        {"item": item.id, "guide": " ".join(item.guide.split()), "prompt": item.prompt, **texts(item), **answer}
        for item in items
        if annotator not in item.judgements
    ]
    columns = ["item", "guide", "prompt", "response", "response_b", *answer]
    return rows, columns if any("response_b" in row for row in rows) else [c for c in columns if c != "response_b"]


def judgements(source: object, lines: Sequence[Line], items: Mapping[int, Item]) -> list[Judgement]:
    """Return what people have filled in; rows without a score are left out.

    `items` are the open ones. Raises ConfigError naming every line (ten at most) whose annotator is missing, or whose score
    is none of its item's scale, or which an annotator has filled in twice, differently.
    """
    said: dict[tuple[int, str], int | None] = {}

    def take(line: Line) -> Judgement | None:
        one = _judgement(line, items)
        if one is not None and said.setdefault((one.item, one.annotator), one.score) != one.score:
            raise ConfigError(f"{one.annotator!r} has given item {one.item} another score above: keep one")
        return one

    return [one for one in taken(source, lines, take) if one is not None]


def _judgement(line: Line, items: Mapping[int, Item]) -> Judgement | None:
    if missing := [name for name in ("item", "annotator", "score") if name not in line.row]:
        raise ConfigError(f"no column {missing}: import takes what export --queue wrote, and has {', '.join(line.row)}")
    given, annotator = _as_written(line.row["score"]), str(line.row["annotator"] or "").strip()
    if not given:
        return None
    if not (as_number := _as_written(line.row["item"])).isdecimal():
        raise ConfigError(f"item {line.row['item']!r} is no number: import takes what export --queue wrote")
    number = int(as_number)
    if not annotator:
        raise ConfigError("annotator is empty: who has judged this?")
    item = items.get(number)
    if item is not None and not _about(item, line.row):
        raise ConfigError(
            f"item {number} is another question in this ledger: import into the ledger that wrote the queue"
        )
    scale = SCALES[item.query_type] if item is not None else None
    if given == CANNOT_JUDGE:
        score = None
    elif item is not None and item.query_type == "pairwise":
        if given.lower() not in BETTER:
            raise ConfigError(f"score {given!r} must be A, B, neither or ? (cannot judge)")
        score = BETTER[given.lower()]
    else:
        score = int(given) if given.isdigit() else -1
        if scale is not None and score not in scale:
            raise ConfigError(f"score {given!r} must be {scale[0]} … {scale[-1]}, or ? (cannot judge)")
    return Judgement(number, annotator, score, str(line.row.get("note") or ""))


def _as_written(value: object) -> str:
    """Return a value as people write it; a whole number as such, which tables with gaps make 4.0 of."""
    text = "" if value is None else str(value).strip()
    text = "" if text.lower() == "nan" else text
    return text.removesuffix(".0") if text.removesuffix(".0").isdecimal() else text


def _about(item: Item, row: Mapping[str, Any]) -> bool:
    """Whether a row holds the item's own texts; line ends may have changed on the way."""
    said = {"prompt": item.prompt, **texts(item)}
    return all(str(row.get(name, text)).split() == text.split() for name, text in said.items())
