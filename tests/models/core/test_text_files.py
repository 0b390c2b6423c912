"""Files as people have them: what is not a list of prompts is refused before a judgement of it is bought."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.core.data import Prompt, ScoredExample
from models.labelling.label_files import read_lines
from models.labelling.queue_files import judgements
from models.oracles.replay import Replay
from models.sources.base import Prompts, check_disjoint, same_prompt
from models.sources.files import Files
from models.sources.hub import DatasetSpec, Hub


def source(folder: Path, name: str, content: str | bytes, **fields: Any) -> Files:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "held.txt").write_text("what is held out\n")
    return Files(pool=folder / name, held_out=folder / "held.txt", **fields)


def pool(given: Files) -> list[str]:
    return [prompt.text for prompt in given.load().pool]


@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson", "p.JSONL", "p.NDJson"])
def test_json_lines_are_read_under_each_of_their_names(tmp_path: Path, name: str) -> None:
    assert pool(source(tmp_path, name, '{"prompt": "one"}\r\n{"prompt": "two"}')) == ["one", "two"]


def test_plain_text_is_read_under_its_name(tmp_path: Path) -> None:
    assert pool(source(tmp_path, "p.TXT", "one\r\n\n two \n")) == ["one", "two"]


@pytest.mark.parametrize(
    "name",
    ["p.csv", "p.json", "p.parquet", "p.tsv", "p.xlsx", "p.jsonl.gz", "p.md", "p.text", "p", "p.txt.bak", ".txt"],
)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ValueError, match=r"ends in .*, and what is read is .txt .* and .jsonl or .ndjson .*: convert it"
    ):
        source(tmp_path, name, "one\ntwo\n").load()


@pytest.mark.parametrize("within", ["\u2028", "\u2029", "\x85", "\x0c", "\x0b", "\x1c", "\x1d", "\x1e"])
def test_a_line_ends_at_its_end_alone(tmp_path: Path, within: str) -> None:
    text = f"Explain.{within}Then give an example."
    assert pool(source(tmp_path, "p.txt", f"{text}\nand another\n")) == [text, "and another"]
    row = json.dumps({"prompt": text}, ensure_ascii=False) if within > "\x20" else json.dumps({"prompt": text})
    assert pool(source(tmp_path, "p.jsonl", row + "\n")) == [text]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")), min_size=1))
def test_every_prompt_of_json_lines_is_read_as_it_was_written(tmp_path_factory: Any, prompts: list[str]) -> None:
    texts = {same_prompt(text): text.strip() for text in prompts if same_prompt(text)}
    rows = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts.values())
    if texts:
        assert pool(source(tmp_path_factory.mktemp("rows"), "p.jsonl", rows)) == list(texts.values())


def test_the_mark_that_editors_put_first_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    for name, lines in (("p.txt", "one\n\ufefftwo\n"), ("p.jsonl", '{"prompt": "one"}\n\ufeff{"prompt": "two"}\n')):
        assert pool(source(tmp_path, name, b"\xef\xbb\xbf" + lines.encode())) == ["one", "two"]
    held = source(tmp_path, "p.txt", b"\xef\xbb\xbfwhat is held out\n")
    with pytest.raises(ValueError, match="both in the pool and held out"):
        held.load()


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("p.txt", "one\0two\n", "line 1 holds a NUL"),
        ("p.txt", "one\n".encode("utf-16-le"), "line 1 holds a NUL"),
        ("p.jsonl", '{"prompt": "a\\u0000b"}\n', "line 1 holds a NUL"),
        ("p.jsonl", '{"prompt": "a\\ud83d"}\n', r"line 1 holds half a character \('\\ud83d'\)"),
        ("p.txt", "one\rtwo\r", "line 1 holds a carriage return within"),
        ("p.txt", '{"prompt": "one"}\n{"prompt": "two"}\n', "holds JSON, and .txt is read as a prompt a line"),
        ("p.txt", '[\n  {"prompt": "one"},\n  {"prompt": "two"}\n]\n', "holds JSON"),
        ("p.txt", '[{"prompt": "one"}, {"prompt": "two"}]', "holds JSON"),
        ("p.txt", 'a comment\n{"prompt": "one"},\n{"prompt": "two"}\n', "holds JSON"),
        ("p.txt", "text,label\nplain,z\n", r"line 1 is the header of a table"),
        ("p.txt", "prompt,source\nplain,z\n", r"line 1 is the header of a table \('prompt,source'\)"),
        ("p.txt", '\n"Prompt";"id"\nplain;1\n', "line 2 is the header of a table"),
        ("p.txt", "id\tinstruction\n1\tplain\n", "line 1 is the header of a table"),
        ("p.txt", "prompt\nplain\n", "line 1 is the header of a table"),
        ("p.jsonl", '{"prompt": "one", "source": "x"}\n', r"line 1 has \['source'\], and what is read is prompt"),
        ("p.jsonl", '{"prompt": "one", "Prompt": "x"}\n', r"line 1 has \['Prompt'\]"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b", "prompt": "c"}\n', "line 2 has the key 'prompt' twice"),
        ("p.jsonl", '{"system": "be kind", "prompt": "one"}\n', "line 1 has 'system': conversations .* not read yet"),
        ("p.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n', "line 1 has 'messages': conversations"),
        ("p.jsonl", '{"prompt": [{"role": "user", "content": "x"}]}\n', "line 1: 'prompt' holds a list: conversations"),
        ("p.jsonl", '{"prompt": {"content": "x"}}\n', "line 1: 'prompt' holds a dict: conversations"),
        ("p.jsonl", '{"prompt": null}\n', "line 1: no prompt"),
        ("p.jsonl", '{"prompt": true}\n', "line 1: no prompt"),
        ("p.jsonl", '[\n{"prompt": "one"}\n]\n', "line 1 is not JSON"),
        ("p.jsonl", '{"prompt": ' + "[" * 50_000 + "\n", "line 1 is not JSON"),
        ("p.jsonl", '{"prompt": "x", "score": ' + "9" * 9000 + "}\n", "line 1 is not JSON"),
    ],
    ids=range(26),
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path: Path, name: str, content: str | bytes, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        source(tmp_path, name, content).load()


def test_prompts_that_only_look_like_something_else_are_prompts(tmp_path: Path) -> None:
    lines = [
        "Write a poem, then a song",
        '{"a": 1} is what?',
        "Sort: 3, 1, 2",
        "42",
        "[brackets]",
        "prompt me, please!",
    ]
    assert pool(source(tmp_path, "p.txt", "\n".join(lines))) == lines


def test_a_seed_line_has_what_it_needs_and_nothing_else(tmp_path: Path) -> None:
    seed = tmp_path / "seed.jsonl"
    given = source(tmp_path, "p.txt", "one\n").model_copy(update={"eft_examples": seed})
    seed.write_text('{"prompt": "a", "response": "b", "score": 1}\n')
    assert given.load().eft_examples == [ScoredExample("a", "b", 1.0)]
    for row, rule in (
        ({"prompt": "a", "response": "b", "score": 1, "rank": 2}, r"line 1 has \['rank'\]"),
        ({"prompt": "a", "response": ["b"], "score": 1}, "line 1: a seed line is"),
        ({"prompt": " ", "response": "b", "score": 1}, "line 1: a seed line is"),
        ({"prompt": "a", "response": "b\0", "score": 1}, "line 1 holds a NUL"),
    ):
        seed.write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=rule):
            given.load()
    (tmp_path / "seed.csv").write_text("prompt,response\na,b\n")
    with pytest.raises(ValueError, match="seed.csv ends in '.csv'"):
        given.model_copy(update={"demonstrations": tmp_path / "seed.csv"}).load()


COMPOSED, APART = (unicodedata.normalize(form, "Zoë’s  café") for form in ("NFC", "NFD"))


def test_prompts_that_read_alike_are_the_same(tmp_path: Path) -> None:
    assert COMPOSED != APART
    alike = [COMPOSED, APART, "Zoë’s\u00a0café", " Zoë’s café", "\ufeffZoë’s\tcafé"]
    assert len({same_prompt(text) for text in alike}) == 1
    for text in alike[1:]:
        with pytest.raises(ValueError, match="both in the pool and held out"):
            check_disjoint(Prompts([], [Prompt.of(COMPOSED)], [Prompt.of(text)]))
        judged = [ScoredExample(COMPOSED, "y", 1.0)]
        with pytest.raises(ValueError, match="1 held-out prompts are in the EFT examples"):
            check_disjoint(Prompts([], [Prompt.of("x")], [Prompt.of(text)], judged))
        with pytest.raises(ValueError, match="pool repeats the prompt"):
            check_disjoint(Prompts([], [Prompt.of(COMPOSED), Prompt.of(text)], [Prompt.of("y")]))
    twice = source(tmp_path, "p.txt", f"{COMPOSED}\n{APART}\n")
    with pytest.raises(ValueError, match="line 2 repeats line 1"):
        twice.load()
    assert pool(twice.model_copy(update={"drop_duplicates": True})) == [COMPOSED]


def table(folder: Path, rows: list[dict[str, Any]], template: str, **fields: Any) -> Hub:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = DatasetSpec(dataset=str(folder), prompt=template, rows=50)
    return Hub(pool=given, held_out=1, demonstrations=given.model_copy(update=fields) if fields else None)


@pytest.mark.parametrize("value", [[{"role": "user", "content": "Q"}], {"content": "Q"}, ["Q", "R"]])
def test_a_column_of_messages_is_no_prompt(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="column 'prompt' holds a .*, and a text is needed: conversations"):
        table(tmp_path / "t", [{"prompt": value}] * 5, "{prompt}").load()


def test_rows_without_a_value_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"instruction": f"Do {n}", "input": None if n % 2 else "this", "output": None if n % 3 else f"done {n}"}
        for n in range(12)
    ]
    prompts = table(tmp_path / "t", rows, "{instruction} {input}").load()
    found = {p.text for p in [*prompts.pool, *prompts.held_out]}
    assert found == {f"Do {n} this" for n in range(0, 12, 2)}
    assert "6 rows of this kind hold no value where one is needed: left out" in caplog.text
    seeded = table(tmp_path / "t", rows, "{instruction}", response="{output}")
    assert sorted(d.response for d in seeded._demonstrations()) == sorted(f"done {n}" for n in range(0, 12, 3))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("value", [None, [{"content": "x"}], float("nan")])
def test_a_table_of_labels_without_a_text_is_refused(tmp_path: Path, suffix: str, value: object) -> None:
    import pandas as pd

    path = tmp_path / f"labels{suffix}"
    frame = pd.DataFrame({"prompt": [value, value], "response": ["b", "c"], "label": [1.0, 2.0]})
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    with pytest.raises(ValueError, match=r"column 'prompt' holds .*, and a text is needed"):
        Replay(path=path).check()


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("item;annotator;score\n1;ada;3\n", r"line 2: no column \['item', 'annotator', 'score'\]"),
        ("item,annotator,Rating\n1,ada,3\n", r"line 2: no column \['score'\]"),
        ("item,annotator,score\n1,ada,a b, c,3\n", "line 2 has 5 columns, and the first line names 3"),
        ("item,annotator,score,score\n1,ada,3,4\n", "line 1 names a column twice"),
        ("item,annotator,score\n1.5,ada,3\n", "item '1.5' is no number"),
        ("item,annotator,score\n-1,ada,3\n", "item '-1' is no number"),
    ],
)
def test_a_table_of_judgements_that_is_not_the_queues_is_refused(tmp_path: Path, content: str, rule: str) -> None:
    (tmp_path / "q.csv").write_text(content)
    with pytest.raises(ValueError, match=rule):
        judgements("q.csv", read_lines(tmp_path / "q.csv"), {})


@pytest.mark.parametrize(("name", "row"), [("q.csv", "7.0,ada,4.0"), ("q.CSV", "7,ada,4"), ("q.csv", " 7 ,ada, 4 ")])
def test_whole_numbers_are_read_as_tables_with_gaps_write_them(tmp_path: Path, name: str, row: str) -> None:
    (tmp_path / name).write_text(f"item,annotator,score\n{row}\n8.0,ada,\n9,ada,nan\n")
    (found,) = judgements(name, read_lines(tmp_path / name), {})
    assert (found.item, found.score) == (7, 4)
