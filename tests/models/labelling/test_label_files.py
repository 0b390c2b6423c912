"""Labels and judgements in files: every wrong row is named, and all rows are taken or none."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.labelling.human_queue import Judgement, Queue
from models.labelling.label_files import bought_labels, read_lines, write_rows
from models.labelling.label_studio import annotations, tasks_of
from models.labelling.queue_files import judgements, queue_rows
from models.ledger.ledger import Ledger
from tests.models.labelling.test_human_queue import open_items


def filled(file: Path, ledger: Ledger, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> list[Judgement]:
    rows, columns = queue_rows(Queue(ledger).items(), "")
    write_rows(file, [change(number, row) for number, row in enumerate(rows)], columns)
    return judgements(file, read_lines(file), {item.id: item for item in Queue(ledger).items()})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_every_wrong_row_is_named_with_its_line_and_none_is_taken(tmp_path: Path, suffix: str) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}")
    open_items(ledger, number=6)
    wrong: list[dict[str, Any]] = [
        {"annotator": "ada", "score": 9},
        {"annotator": "", "score": 3},
        {"annotator": "ada", "score": "good"},
        {"annotator": "ada", "score": 2, "item": "x"},
        {"annotator": "ada", "score": 2, "prompt": "another prompt"},
        {"annotator": "ada", "score": ""},
    ]
    with pytest.raises(ValueError, match="nothing was taken") as error:
        filled(tmp_path / f"q{suffix}", ledger, lambda number, row: row | wrong[number])
    first = 2 if suffix == ".csv" else 1
    for line, rule in enumerate(
        [
            "score '9' must be 0 … 5",
            "annotator is empty",
            "score 'good' must be 0 … 5",
            "item 'x' is no number",
            "item 5 is another question",
        ],
        start=first,
    ):
        assert f"line {line}: {rule}" in str(error.value)
    assert f"line {first + 5}" not in str(error.value), "a row that nobody has filled in yet is no error"


def test_a_table_that_a_spreadsheet_has_saved_is_read(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}")
    open_items(ledger, number=2)
    rows, columns = queue_rows(Queue(ledger).items(), "ada")
    with (tmp_path / "q.csv").open("w", encoding="utf-8-sig", newline="") as out:
        writer = csv.DictWriter(out, columns, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows([{**row, "score": " 0 "} for row in rows])
    found = judgements(tmp_path / "q.csv", read_lines(tmp_path / "q.csv"), {i.id: i for i in Queue(ledger).items()})
    assert [(one.annotator, one.score) for one in found] == [("ada", 0)] * 2


def test_lines_are_counted_as_an_editor_counts_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('item,note\n\n1,"two\nlines"\n\n2,x\n')
    assert [(line.number, line.row["item"]) for line in read_lines(tmp_path / "a.csv")] == [(3, "1"), (6, "2")]


def test_a_wrong_annotation_of_label_studio_is_named_by_its_task(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}")
    open_items(ledger, number=2)
    items = {item.id: item for item in Queue(ledger).items()}
    tasks = [task | {"annotations": [annotated("3")]} for task in tasks_of(list(items.values()))]
    tasks[1]["annotations"] = [annotated("9")]
    with pytest.raises(ValueError, match="task 2: score '9' must be 0 … 5"):
        judgements("export", annotations(tasks, "export"), items)


def annotated(score: str) -> dict[str, Any]:
    said = {"from_name": "score", "to_name": "response", "type": "choices", "value": {"choices": [score]}}
    return {"completed_by": 1, "was_cancelled": False, "result": [said]}


def test_two_different_scores_of_one_annotator_are_refused(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'l.sqlite'}")
    (one,) = open_items(ledger, number=1)
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps({"item": one, "annotator": "ada", "score": s}) for s in (1, 2)))
    with pytest.raises(ValueError, match="line 2: 'ada' has given item 1 another score above"):
        judgements(file, read_lines(file), {item.id: item for item in Queue(ledger).items()})


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"score": None}, "line 2: labelled, and its score is None"),
        ({"score": math.inf}, "line 2: labelled, and its score is inf"),
        ({"status": "lost"}, "line 2: status: Input should be 'labelled' or 'quarantined'"),
        ({"micro_usd": -1}, "line 2: micro_usd: Input should be greater than or equal to 0"),
        ({"tokens": "many"}, "line 2: tokens: Input should be a valid integer"),
        ({"oracle": ""}, "line 2: oracle: String should have at least 1 character"),
    ],
)
def test_a_wrong_row_of_bought_labels_is_named_and_none_is_taken(
    tmp_path: Path, change: dict[str, Any], rule: str
) -> None:
    good = {
        "oracle": "judge",
        "criterion": "c",
        "prompt": "p",
        "response": "r",
        "status": "labelled",
        "score": 0.5,
        "micro_usd": 5,
        "tokens": 1,
        "raw": "",
    }
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in (good, good | change)))
    with pytest.raises(ValueError, match="nothing was taken") as error:
        bought_labels(file, read_lines(file))
    assert rule in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": ', "line 2"),
        ("a.jsonl", "[1]", "line 1: is list, not an object"),
        ("a.json", '{"a": 1}', "not a Label Studio export"),
        ("a.json", "[1", "cannot be read as .json"),
        ("a.csv", 'a,b\n"x', "cannot be read as .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, rule: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name) as error:
        read_lines(tmp_path / name)
    assert rule in str(error.value)


@pytest.mark.parametrize(
    "result",
    [
        {"from_name": "score", "type": "rating", "value": {"rating": 4}},
        {"from_name": "Rating", "type": "choices", "value": {"choices": ["4"]}},
    ],
)
def test_an_annotation_by_another_interface_is_refused(result: dict[str, Any]) -> None:
    task = {"data": {"item": 1}, "annotations": [{"completed_by": 1, "result": [result]}]}
    with pytest.raises(ValueError, match="has no choice named score"):
        annotations([task], "export")
