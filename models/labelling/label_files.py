"""Import and export labels as files between ledgers: all rows or none."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from models.core.data import LabelStatus
from models.core.errors import ConfigError
from models.core.files import whole
from models.labelling.label_studio import Line, annotations
from models.ledger.tables import Question

Told = TypeVar("Told")
_MOST_ERRORS = 10

_Count = Annotated[int, Field(ge=0)]
_Named = Annotated[str, Field(min_length=1)]


class BoughtLabel(BaseModel):
    """A row of `ninefold labels export`: a settled query."""

    oracle: _Named
    criterion: _Named
    prompt: str
    response: str
    status: LabelStatus
    score: Annotated[float | None, BeforeValidator(lambda value: None if value == "" else value)]
    micro_usd: _Count
    tokens: _Count
    raw: str
    account: str = ""

    @model_validator(mode="after")
    def _scored(self) -> "BoughtLabel":
        if self.status == "labelled" and (self.score is None or not math.isfinite(self.score)):
            raise ConfigError(f"labelled, and its score is {self.score}: a finite number")
        return self

    @property
    def question(self) -> Question:
        """What was asked."""
        return Question(self.oracle, self.criterion, self.prompt, self.response)

    @property
    def answer(self) -> dict[str, Any]:
        """What `Ledger.adopt` takes beside the question."""
        score = self.score if self.status == "labelled" else None
        return {**self.model_dump(include={"status", "raw", "tokens", "micro_usd"}), "score": score}


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a .csv or .jsonl file, whole or not at all."""
    if file.suffix not in {".csv", ".jsonl"}:
        raise ConfigError(f"{file} must end in .csv or .jsonl")
    with whole(file) as draft, draft.open("w", encoding="utf-8", newline="") as out:
        if file.suffix == ".csv":
            writer = csv.DictWriter(out, columns)
            writer.writeheader()
            writer.writerows(rows)
        else:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_lines(file: Path) -> list[Line]:
    """Return the rows of a .csv, .jsonl or Label Studio .json file; raise ConfigError if it cannot be read."""
    if not file.is_file():
        raise ConfigError(f"{file} does not exist")
    try:
        with file.open(encoding="utf-8-sig", newline="") as source:  # with the mark that spreadsheets put first
            if file.suffix.lower() == ".csv":
                return list(_csv_lines(source, file))
            if file.suffix.lower() == ".json":
                return annotations(json.load(source), file)
            return taken(file, [Line(n, {"": text}) for n, text in enumerate(source, 1) if text.strip()], _json_line)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ConfigError(f"{file} cannot be read as {file.suffix or 'JSON lines'}: {error}") from error


def _csv_lines(source: TextIO, file: Path) -> Iterator[Line]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(source, strict=True)
    columns = next(reader, [])
    if len(columns) != len(set(columns)):
        raise ConfigError(f"{file}, line 1 names a column twice: {', '.join(columns)}")
    begin = reader.line_num + 1
    for row in reader:
        if row and len(row) != len(columns):
            raise ConfigError(f"{file}, line {begin} has {len(row)} columns, and the first line names {len(columns)}")
        if row:
            yield Line(begin, dict(zip(columns, row, strict=True)))
        begin = reader.line_num + 1


def _json_line(line: Line) -> Line:
    row = json.loads(line.row[""])
    if not isinstance(row, dict):
        raise ConfigError(f"is {type(row).__name__}, not an object")
    return Line(line.number, row)


def bought_labels(source: object, lines: Sequence[Line]) -> list[BoughtLabel]:
    """Return the labels of a file that export wrote; raise ConfigError naming every line that is not one (ten at most)."""
    return taken(source, lines, lambda line: BoughtLabel.model_validate(line.row))


def taken(source: object, lines: Sequence[Line], take: Callable[[Line], Told]) -> list[Told]:
    """Return what is made of every line; raise ConfigError with the errors of all lines, and the rule of each."""
    found, errors = [], []
    for line in lines:
        try:
            found.append(take(line))
        except ValidationError as error:
            first = error.errors()[0]
            place, rule = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            errors.append(f"{line.what} {line.number}: {place + ': ' if place else ''}{rule}")
        except ValueError as error:
            errors.append(f"{line.what} {line.number}: {error}")
    if errors:
        more = f"; and {len(errors) - _MOST_ERRORS} more" if len(errors) > _MOST_ERRORS else ""
        raise ConfigError(f"{source}: nothing was taken. {'; '.join(errors[:_MOST_ERRORS])}{more}")
    return found
