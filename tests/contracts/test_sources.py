"""Prompt files as users really have them: each mistake is named with its line and remedy."""

import json
from pathlib import Path

import pytest

from models.core.data import Demonstration, Prompt, ScoredExample
from models.core.registry import plugins_of
from models.sources.base import Prompts, PromptSource, check_disjoint
from models.sources.files import Files
from models.sources.hub import DatasetSpec, Hub
from models.sources.movie_reviews import MovieReviews
from ninefold.testing import check_source


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "pool.jsonl").write_text('{"prompt": "one"}\n\n{"prompt": "two"}\n')
    (tmp_path / "held.txt").write_text("three\nfour\n")
    (tmp_path / "seed.jsonl").write_text('{"prompt": "five", "response": "six"}\n')
    return Files(pool=tmp_path / "pool.jsonl", held_out=tmp_path / "held.txt", demonstrations=tmp_path / "seed.jsonl")


def test_the_contract_covers_every_registered_source() -> None:
    assert set(plugins_of(PromptSource)) == {Files, Hub, MovieReviews}


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """Conversation trees like oasst1's, and tasks like Super-NaturalInstructions', in folders."""
    trees, tasks = tmp_path / "trees", tmp_path / "tasks"
    trees.mkdir()
    tasks.mkdir()
    message = ("message_id", "parent_id", "text", "role", "lang", "rank")
    rows = [
        ("a", None, "How are you?", "prompter", "en", None),
        ("b", "a", "Very well.", "assistant", "en", 0),
        ("c", "a", "Go away.", "assistant", "en", 1),
        ("d", "b", "Good!", "prompter", "en", None),
        ("e", "d", "Indeed.", "assistant", "en", 0),
        ("f", None, "Wie geht es?", "prompter", "de", None),
        ("g", "f", "Gut.", "assistant", "de", 0),
    ]
    write_jsonl(trees / "train.jsonl", [dict(zip(message, row, strict=True)) for row in rows])
    write_jsonl(
        tasks / "train.jsonl",
        [{"definition": "Add.", "inputs": f"{n} + {n % 5}", "targets": "?"} for n in range(20)] * 2,
    )
    seed = DatasetSpec(
        dataset=str(trees),
        prompt="{parent.text}",
        response="{text}",
        id="message_id",
        parent="parent_id",
        where={"role": "assistant", "lang": "en", "rank": 0, "parent.parent_id": None},
        rows=10,
    )
    return Hub(
        demonstrations=seed, pool=DatasetSpec(dataset=str(tasks), prompt="{definition} {inputs}", rows=8), held_out=3
    )


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_columns_become_prompts_and_trees_become_demonstrations(hub: Hub) -> None:
    prompts = hub.load()
    assert prompts.demonstrations == [Demonstration("How are you?", "Very well.")], (
        "first answers in English, ranked best"
    )
    assert (len(prompts.pool), len(prompts.held_out)) == (8, 3)
    assert all(p.text.startswith("Add. ") for p in prompts.pool)
    assert hub.model_copy(update={"sample_seed": 1}).load().pool != prompts.pool
    before = hub.digest_inputs()
    (Path(hub.pool.dataset) / "train.jsonl").write_text('{"definition": "Add.", "inputs": "1", "targets": "1"}\n')
    assert hub.digest_inputs() != before


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"prompt": "{instruction}"}, r"has no column \['instruction'\]: it has \['definition', 'inputs', 'targets'\]"),
        ({"dataset": "./nowhere"}, "neither a folder nor a hub id"),
        ({"where": {"inputs": "none"}}, "has 0 distinct prompts of this kind, and 3 are held out"),
    ],
)
def test_a_wrong_table_is_refused(hub: Hub, changes: dict[str, object], rule: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=rule):
        hub.model_copy(update={"pool": hub.pool.model_copy(update=changes)}).load()


@pytest.mark.parametrize("kind", ["files", "hub", "movie_reviews"])
def test_every_source_keeps_the_contract(files: Files, hub: Hub, kind: str) -> None:
    sources = {"files": files, "hub": hub, "movie_reviews": MovieReviews(demonstrations=20, pool=30, held_out=10)}
    source: PromptSource = sources[kind]
    check_source(source)
    prompts = source.load()
    assert all(d.prompt and d.response for d in prompts.demonstrations)
    assert source.digest_inputs() == source.model_copy().digest_inputs()


def test_jsonl_and_plain_text_are_read(files: Files) -> None:
    prompts = files.load()
    assert [p.text for p in prompts.pool] == ["one", "two"]
    assert [p.text for p in prompts.held_out] == ["three", "four"]
    assert prompts.demonstrations[0].response == "six"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"holds no prompt: give at least one line"),
        (b"   \n\n", r"holds no prompt"),
        (b'{"prompt": "caf\xe9"}\n', r"is not UTF-8 \(byte 15\): convert it, for example with iconv"),
        (b'{"prompt": "one"}\nnot json\n', r"line 2 is not JSON"),
        (b'{"prompt": "one"}\n["two"]\n', r"line 2 is not a JSON object"),
        (b'{"promt": "one"}\n', r"line 1: no prompt"),
        (b'{"prompt": 7}\n', r"line 1: no prompt"),
        (
            b'{"prompt": "one"}\n{"prompt": "two"}\n{"prompt": "one"}\n',
            r"line 3 repeats line 1 .*drop_duplicates: true",
        ),
    ],
)
def test_a_bad_prompt_file_is_refused_with_line_and_remedy(files: Files, content: bytes, message: str) -> None:
    files.pool.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.load()


def test_eft_examples_have_a_score_in_every_line(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "eft.jsonl"
    write_jsonl(
        path, [{"prompt": "seven", "response": "eight", "score": 2}, {"prompt": "x", "response": "y", "score": 0.5}]
    )
    judged = files.model_copy(update={"eft_examples": path})
    assert (files.has_eft_examples, judged.has_eft_examples) == (False, True)
    assert judged.load().eft_examples == [ScoredExample("seven", "eight", 2.0), ScoredExample("x", "y", 0.5)]
    assert judged.digest_inputs() != files.digest_inputs()
    for score in ("high", None, True, float("nan")):
        write_jsonl(path, [{"prompt": "seven", "response": "eight", "score": score}])
        with pytest.raises(ValueError, match=r'line 1: a line of EFT examples has a number as its "score"'):
            judged.load()
    write_jsonl(path, [{"prompt": "three", "response": "eight", "score": 1}])
    with pytest.raises(ValueError, match="1 held-out prompts are in the EFT examples, such as 'three'"):
        judged.load()


def test_rankings_of_a_tree_become_an_eft_examples(hub: Hub) -> None:
    assert hub.demonstrations is not None
    where = {"role": "assistant", "lang": "en"}
    ranked = hub.demonstrations.model_copy(update={"score": "-{rank}", "where": where})
    found = hub.model_copy(update={"eft_examples": ranked}).load()
    assert sorted((row.response, row.score) for row in found.eft_examples) == [
        ("Go away.", -1),
        ("Indeed.", 0),
        ("Very well.", 0),
    ]
    unranked = ranked.model_copy(update={"where": {"role": "prompter"}, "prompt": "{text}", "parent": None})
    with pytest.raises(ValueError, match=r"no row of this kind whose score '-\{rank\}' is a number"):
        hub.model_copy(update={"eft_examples": unranked}).load()
    with pytest.raises(ValueError, match="eft_examples needs a response and a score"):
        hub.model_copy(update={"eft_examples": hub.demonstrations}).load()


def test_the_ratings_of_reviews_are_an_eft_examples() -> None:
    prompts = MovieReviews(demonstrations=20, eft_examples=12, pool=30, held_out=10).load()
    assert [(row.prompt, row.response) for row in prompts.eft_examples] == [
        (d.prompt, d.response) for d in prompts.demonstrations[:12]
    ]
    assert all(-4 <= row.score <= 4 for row in prompts.eft_examples)
    assert len({row.score for row in prompts.eft_examples}) > 6
    with pytest.raises(ValueError, match=r"5000 asked: lower prompts\.eft_examples"):
        MovieReviews(eft_examples=5000).load()


def test_duplicates_are_dropped_on_request_only(files: Files) -> None:
    files.pool.write_text('{"prompt": "one"}\n{"prompt": "one"}\n')
    relaxed = files.model_copy(update={"drop_duplicates": True})
    assert [p.text for p in relaxed.load().pool] == ["one"]


def test_a_missing_file_is_named(files: Files) -> None:
    files.held_out.unlink()
    with pytest.raises(FileNotFoundError, match=r"held.txt does not exist: check the path in the prompts section"):
        files.load()


def test_a_prompt_in_the_pool_is_not_held_out(files: Files) -> None:
    files.held_out.write_text("one\n")
    with pytest.raises(ValueError, match="both in the pool and held out, such as 'one'"):
        files.load()


def test_a_repeated_prompt_is_refused_by_the_common_check() -> None:
    with pytest.raises(ValueError, match="pool repeats the prompt 'x'"):
        check_disjoint(Prompts([], [Prompt.of("x"), Prompt.of("x")], [Prompt.of("y")]))


def test_an_edited_file_has_another_digest(files: Files) -> None:
    before = files.digest_inputs()
    files.pool.write_text('{"prompt": "one"}\n')
    assert files.digest_inputs() != before


def test_held_out_prompts_may_start_after_those_that_chose_the_settings() -> None:
    first, later = (MovieReviews(held_out=20, held_out_offset=begin).load() for begin in (0, 20))
    assert not {p.id for p in first.held_out} & {p.id for p in later.held_out}
    assert first.pool == later.pool
    with pytest.raises(ValueError, match="the held_out split holds .* snippets, 100020 asked"):
        MovieReviews(held_out=20, held_out_offset=100_000).load()


def test_more_snippets_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="the pool split holds .* snippets, 100000 asked: lower prompts.pool"):
        MovieReviews(pool=100_000).load()
