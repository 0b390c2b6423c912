"""AlpacaEval 2 (2404.04475): reference answers, prompts of the judge, length-controlled win rate, by its own package."""

import copy
import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from models.core import hub
from models.core.arrays import FloatArray
from models.core.cache import remembered_sha256
from models.core.errors import ConfigError

if TYPE_CHECKING:
    from alpaca_eval.annotators import SingleAnnotator

PACKAGE = "alpaca_eval"
ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
_HUB = "tatsu-lab/alpaca_eval"
_REFERENCE = "alpaca_eval_gpt4_baseline.json"
_DIFFICULTIES = "df_gamed.csv"  # of the instructions, and the verbose and concise baselines that the regression needs
_MARKS = ("<|im_start|>", "<|im_end|>")  # of the package's templates: a text must not end its own quotation
_NAME = re.compile(r"\w[\w.-]*")
_CALL = {"model_name", "max_tokens", "temperature", "logprobs", "top_logprobs"}

Completion = Mapping[str, Any]


class ReferenceAnswer(NamedTuple):
    """An instruction and the reference's answer to it."""

    instruction: str
    output: str


class Annotation(NamedTuple):
    """What came of one instruction: its place in the reference's file, both answers, and P(the policy's is better)."""

    place: int
    instruction: str
    reference: str
    output: str
    preferred: float


def installed() -> str:
    """Return the package's version; raise ConfigError with the remedy if it is not there."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError as error:
        raise ConfigError("AlpacaEval 2 needs its package: pip install 'ninefold[benchmarks]'") from error


def reference_file(path: Path | None) -> Path:
    """Return `path`, or AlpacaEval 2's answers of GPT-4 turbo from the hub; raise ConfigError if it cannot be had."""
    if path is None:
        return hub.file(_HUB, _REFERENCE)
    if not path.is_file():
        raise ConfigError(
            f"reference {path} does not exist: name a JSON file of instruction and output, or leave it out"
        )
    return path


def difficulties_file() -> Path:
    """Return the hub's file that the published length control needs; raise ConfigError if it cannot be had."""
    return hub.file(_HUB, _DIFFICULTIES)


def answers(path: Path) -> list[ReferenceAnswer]:
    """Read a reference: a JSON list of objects with `instruction` and `output`. raise ConfigError naming what is wrong."""
    return list(_answers(path, remembered_sha256(path)))


@lru_cache(maxsize=4)
def _answers(path: Path, _sha256: str) -> tuple[ReferenceAnswer, ...]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(ReferenceAnswer(row["instruction"], row["output"]) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"reference {path} must be a JSON list of objects with instruction and output: {error}"
        ) from error
    if not found or not all(isinstance(text, str) for answer in found for text in answer):
        raise ConfigError(f"reference {path} must hold instruction and output as texts, at least one of each")
    return found


def difficulties() -> FloatArray:
    """Return how hard each instruction is, in logits, by its place."""
    import pandas as pd

    table = pd.read_csv(difficulties_file()).drop_duplicates("index").set_index("index")
    return np.array(table["instruction_difficulty"].sort_index(), dtype=float)


def reads(annotator: str) -> dict[str, Any]:
    """Return with what a configuration of the package calls its judge.

    Raises ConfigError if there is none, or it needs more than a chat completion (functions, several examples to a call).
    """
    single, called = _single(annotator), dict(_single(annotator).completions_kwargs)
    if beyond := sorted(called.keys() - _CALL):
        raise ConfigError(
            f"annotator {annotator!r} calls its judge with {beyond}, which is not supported: try {ANNOTATOR}"
        )
    if not single.prompt_template.lstrip().startswith(_MARKS[0]):
        raise ConfigError(f"annotator {annotator!r} is not for a chat model: try {ANNOTATOR}")
    if single.batch_size != 1:
        raise ConfigError(f"annotator {annotator!r} asks about {single.batch_size} at once: try {ANNOTATOR}")
    return called


def frame(annotator: str) -> str:
    """Return the prompt of a configuration, with the names of the texts where they go."""
    return str(_single(annotator).prompt_template)


def reader(annotator: str) -> list[Any]:
    """Return how a configuration reads its judge's reply: the parser's name, its options, the part of the reply."""
    single = _single(annotator)
    parser = single.fn_completion_parser
    options = json.loads(
        json.dumps(parser.keywords, default=lambda pattern: pattern.pattern)
    )  # compiled where it was used
    return [parser.func.__name__, options, single.completion_key]


def preference(
    annotator: str,
    instruction: str,
    reference: str,
    output: str,
    complete: Callable[[list[dict[str, str]]], Completion],
) -> float:
    """Return P(`output` is better than `reference`), in [0, 1]; NaN if the package cannot read the judge's reply.

    The package writes the messages, puts the two in its seeded order and reads the reply that `complete` brings.
    """
    import pandas as pd
    from alpaca_eval.utils import prompt_to_chatml

    def completions(prompts: Sequence[str], **_: object) -> dict[str, list[Any]]:
        replies = [complete(prompt_to_chatml(prompt.strip())) for prompt in prompts]
        return {"completions": [reply["text"] for reply in replies], "completions_all": replies}

    asked = {"instruction": instruction, "output_1": reference, "output_2": output}
    single = copy.copy(_single(annotator))  # of this thread
    single.fn_completions = completions
    found = single(pd.DataFrame([{name: _unmarked(text) for name, text in asked.items()}]))
    return float(found["preference"].iloc[0]) - 1.0 if len(found) else math.nan


def length_controlled(annotations: Sequence[Annotation]) -> FloatArray:
    """Return P(the policy's answer is better) at equal length for each instruction, by the package's regression.

    Its mean is the published length-controlled win rate. The instructions are AlpacaEval 2's: their difficulties are known
    by their places. Raises ConfigError if all answers are longer by the same.
    """
    import pandas as pd

    if len({len(a.output) - len(a.reference) for a in annotations}) < 2:
        raise ConfigError(
            f"the length control knows nothing of {len(annotations)} judgements of one length: ask about more"
        )
    from alpaca_eval.metrics import get_length_controlled_winrate

    table = pd.DataFrame(
        {
            "instruction": [a.instruction for a in annotations],
            "output_1": [a.reference for a in annotations],
            "output_2": [a.output for a in annotations],
            "generator_1": "reference",
            "generator_2": "policy",
            "annotator": "annotator",
            "preference": [a.preferred + 1.0 for a in annotations],
        },
        index=[a.place for a in annotations],
    )
    get_length_controlled_winrate(table, save_weights_dir=None)
    return np.array(table["glm_preference"], dtype=float)


def _unmarked(text: str) -> str:
    while any(mark in text for mark in _MARKS):  # what is left of one may make another
        for mark in _MARKS:
            text = text.replace(mark, "")
    return text


@lru_cache(maxsize=4)
def _single(annotator: str) -> "SingleAnnotator":
    installed()
    if Path(annotator).is_dir():
        annotator = str(Path(annotator).absolute())  # the package would look for it in a folder of its own
    elif not _NAME.fullmatch(annotator):
        raise ConfigError(
            f"annotator {annotator!r} is neither a configuration of alpaca_eval, such as {ANNOTATOR}, nor a folder"
        )
    level, environment = logging.root.level, dict(os.environ)
    from alpaca_eval.annotators import PairwiseAnnotator

    # the package sets the level for every library when it is imported, and reads a .env file of some folder above it
    logging.root.setLevel(level)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    try:
        pool = PairwiseAnnotator(annotators_config=annotator, caching_path=None).annotators
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"alpaca_eval has no annotator {annotator!r}: {error}") from error
    if len(pool) != 1:
        raise ConfigError(f"annotator {annotator!r} is a pool of {len(pool)}: name one with a single judge")
    return next(iter(pool.values()))
