"""Prompt source: text files, JSON lines or one prompt per line."""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from models.core.cache import sha256_of
from models.core.data import Demonstration, Prompt, ScoredExample
from models.core.errors import ConfigError, MissingFileError
from models.core.registry import digest_of
from models.core.text_files import TEXT, check_suffix, check_text, prompts_of, rows_of
from models.sources.base import Prompts, PromptSource, check_disjoint, same_prompt

_KEYS = ("prompt", "response", "score")


class Files(PromptSource):
    """Read prompts and demonstrations from files.

    A line of `pool` and `held_out` is `{"prompt": …}`, or plain text; of `demonstrations`, `{"prompt": …, "response": …}`.

    A line of `eft_examples` is `{"prompt": …, "response": …, "score": …}`. Files end in `.jsonl` or `.ndjson`, plain text in
    `.txt`.
    """

    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"pool", "held_out", "demonstrations", "eft_examples"}
    )  # `digest_inputs` has them

    kind: Literal["files"] = "files"
    pool: Path = Field(description="File of the pool's prompts, which responses are generated from.")
    held_out: Path = Field(description="File of the held-out prompts, which the evaluation uses.")
    demonstrations: Path | None = Field(
        None, description="File of demonstrations for SFT; without one the base model is M_1."
    )
    eft_examples: Path | None = Field(
        None, description="File of responses with somebody's scores, for evaluators that use EFT examples."
    )
    drop_duplicates: bool = Field(
        False, description="Whether repeated prompts are dropped; they are refused otherwise."
    )

    @property
    @override
    def has_eft_examples(self) -> bool:
        return self.eft_examples is not None

    @override
    def load(self) -> Prompts:
        return check_disjoint(
            Prompts(
                demonstrations=_demonstrations(self.demonstrations) if self.demonstrations else [],
                pool=self._prompts(self.pool),
                held_out=self._prompts(self.held_out),
                eft_examples=_judged(self.eft_examples) if self.eft_examples else (),
            )
        )

    @override
    def digest_inputs(self) -> str:
        files = (self.pool, self.held_out, self.demonstrations, self.eft_examples)
        return digest_of([self.drop_duplicates, *[sha256_of(file) if file else None for file in files]])

    def _prompts(self, path: Path) -> list[Prompt]:
        first_seen: dict[str, int] = {}
        prompts = []
        for number, record in _records(path):
            text = record.get("prompt")
            if not isinstance(text, str) or not text.strip():
                raise ConfigError(f'{path}, line {number}: no prompt: write {{"prompt": "…"}} or a line of text')
            prompt = Prompt.of(check_text(text.strip(), f"{path}, line {number}"))
            if (seen := first_seen.setdefault(same_prompt(prompt.text), number)) != number:
                if self.drop_duplicates:
                    continue
                raise ConfigError(
                    f"{path}, line {number} repeats line {seen} ({prompt.text[:60]!r}): remove it, or "
                    "set prompts.drop_duplicates: true"
                )
            prompts.append(prompt)
        if not prompts:
            raise ConfigError(f"{path} holds no prompt: give at least one line")
        return prompts


def _demonstrations(path: Path) -> list[Demonstration]:
    return [_demonstration(record, f"{path}, line {number}") for number, record in _records(path)]


def _judged(path: Path) -> list[ScoredExample]:
    rows = []
    for number, record in _records(path):
        shown, score = _demonstration(record, f"{path}, line {number}"), record.get("score")
        if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
            raise ConfigError(
                f'{path}, line {number}: a line of EFT examples has a number as its "score", got {score!r}'
            )
        rows.append(ScoredExample(shown.prompt, shown.response, float(score)))
    return rows


def _demonstration(record: dict[str, Any], where: str) -> Demonstration:
    prompt, response = record.get("prompt"), record.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str) or not (prompt.strip() and response.strip()):
        raise ConfigError(f'{where}: a seed line is {{"prompt": "…", "response": "…"}}')
    texts = (check_text(text.strip(), where) for text in (prompt, response))
    return Demonstration(*texts)


def _records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise MissingFileError(f"prompt file {path} does not exist: check the path in the prompts section")
    check_suffix(path)
    return prompts_of(path) if path.suffix.lower() in TEXT else rows_of(path, _KEYS)
