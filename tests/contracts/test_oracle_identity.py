"""Every field of every oracle: does it decide the answer (identity), or only how it is got and paid (execution)?

A label is owned under its oracle's fingerprint. A field that decides no answer and is in it buys every label again when it
changes; one that decides and is not in it hands out labels of another question. A new field fails here until it is listed.
"""

from pathlib import Path
from typing import Any

import pytest

from models.core.money import Prices
from models.core.registry import plugins_of
from models.oracles.alpaca_eval import AlpacaEval
from models.oracles.base import Oracle
from models.oracles.chat_client import Endpoint
from models.oracles.gold import Gold
from models.oracles.human import Human
from models.oracles.llm_judge import LLMJudge
from models.oracles.llm_pairwise_judge import LLMPairwiseJudge
from models.oracles.noisy import Noisy
from models.oracles.pairwise_from_scores import PairwiseFromScores
from models.oracles.replay import Replay
from models.oracles.request_style import RequestStyle
from models.oracles.reward_model import RewardModel

ENDPOINT: dict[str, Any] = {"model": "m", "base_url": "http://127.0.0.1:7/v1", "prices": Prices(input=3, output=4)}
OTHER = Endpoint(**ENDPOINT | {"model": "other"})

# Values other than the defaults. Of files it is the content that decides: see the last test.
IDENTITY: dict[type, dict[str, Any]] = {
    Endpoint: {
        "model": "other",
        "base_url": "http://127.0.0.1:8/v1",
        "name": "lab",
        "temperature": 0.5,
        "request": RequestStyle(system="user"),
    },
    RequestStyle: {"reasoning_effort": "low", "system": "user", "extra": {"top_p": 0.5}},
    LLMJudge: {
        "endpoint": OTHER,
        "structured_output": False,
        "scoring": "expected",
        "samples": 2,
        "alternatives": 5,
        "discourage_length_bias": False,
    },
    LLMPairwiseJudge: {"endpoint": OTHER, "structured_output": False, "discourage_length_bias": False},
    AlpacaEval: {"endpoint": OTHER, "annotator": "alpaca_eval_gpt4", "reference": "other.json"},
    Gold: {},
    Human: {"task": "pairwise", "annotators": 2, "annotator_pool": "students"},
    Noisy: {
        "inner": Human(micro_usd=1),
        "seed": 1,
        "label_noise": 0.5,
        "flip": 0.5,
        "garbage": 0.5,
        "fail": 0.5,
        "crash": 0.5,
    },
    PairwiseFromScores: {"inner": Human(micro_usd=1), "temperature": 1.0},
    Replay: {
        "path": "other.json",
        "prompt_column": "p",
        "response_column": "r",
        "label_column": "l",
        "scale": "logit",
    },
    RewardModel: {"model": "other", "template": "plain", "dtype": "float32", "max_tokens": 7},
}
EXECUTION: dict[type, dict[str, Any]] = {
    Endpoint: {
        "api_key_env": "OTHER_KEY",
        "prices": {"input": 1, "output": 2},
        "max_tokens": 65,
        "timeout": 3.0,
        "requests_per_minute": 5,
        "tokens_per_minute": 5,
    },
    RequestStyle: {"max_tokens_as": None, "seed": False, "key_header": "api-key", "query": {"api-version": "1"}},
    LLMJudge: {"attempts": 5},
    LLMPairwiseJudge: {"attempts": 5},
    Gold: {"micro_usd": 5},
    Human: {"micro_usd": 5},
    Noisy: {"latency": 1.0},
    Replay: {"price_column": "usd", "micro_usd": 5},
    RewardModel: {"micro_usd": 5},
}
FILES = {"path", "reference", "model"}  # of oracles: their content decides


@pytest.fixture
def place(tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what the oracles read, and as much again with other content; it is the working directory."""
    for name, answer in (("one", "a mess"), ("other", "a delight")):
        (tmp_path / f"{name}.json").write_text(f'[{{"instruction": "the film is", "output": "{answer}"}}]')
        (tmp_path / name).symlink_to(tiny_model_path) if name == "one" else (tmp_path / name).mkdir()
    for file in tiny_model_path.iterdir():
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "other" / "config.json").open("a") as config:
        config.write("\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fingerprint(cls: type, place: Path, changes: dict[str, Any]) -> str:
    endpoint = dict(ENDPOINT)
    if cls is RequestStyle:
        endpoint["request"] = RequestStyle(**changes)
    if cls is Endpoint:
        endpoint |= changes
    given: dict[type, dict[str, Any]] = {
        AlpacaEval: {"endpoint": endpoint, "reference": place / "one.json"},
        Human: {"micro_usd": 1},
        Noisy: {"inner": Gold()},
        PairwiseFromScores: {"inner": Gold()},
        Replay: {"path": place / "one.json"},
        RewardModel: {"model": str(place / "one")},
    }
    asked = cls if issubclass(cls, Oracle) else LLMJudge
    own = changes if issubclass(cls, Oracle) else {}
    own = own | {name: str(place / value) for name, value in own.items() if name in FILES}
    return asked.model_validate(given.get(asked, {} if asked is Gold else {"endpoint": endpoint}) | own).fingerprint()


def test_every_oracle_is_listed() -> None:
    registered = {kind for kind in plugins_of(Oracle) if kind.__module__.startswith("models.")}
    assert IDENTITY.keys() == registered | {Endpoint, RequestStyle}


@pytest.mark.parametrize("cls", list(IDENTITY), ids=lambda cls: cls.__name__)
def test_what_decides_an_answer_is_in_its_identity_and_nothing_else(cls: type, place: Path) -> None:
    identity, execution = IDENTITY[cls], EXECUTION.get(cls, {})
    fields = set(cls.model_fields) - {"kind"}  # type: ignore[attr-defined]
    assert fields == identity.keys() | execution.keys(), "a new field: say which it is"
    assert not identity.keys() & execution.keys()
    known = fingerprint(cls, place, {})
    for changes, same in ((identity, False), (execution, True)):
        for name, value in changes.items():
            assert (fingerprint(cls, place, {name: value}) == known) is same, name


@pytest.mark.parametrize(("cls", "field"), [(AlpacaEval, "reference"), (Replay, "path"), (RewardModel, "model")])
def test_of_a_file_the_content_decides_and_not_the_place(cls: type, field: str, place: Path) -> None:
    name = "one" if cls is RewardModel else "one.json"
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / name).symlink_to(place / name)
    assert fingerprint(cls, place, {field: f"elsewhere/{name}"}) == fingerprint(cls, place, {})
