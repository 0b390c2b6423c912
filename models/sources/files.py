"""Prompts from text files of the user's own: JSONL or plain text, one prompt a line."""

import json
import math
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from models.downloads import sha256_of
from models.plugins import digest_of
from models.preference import Demonstration, Judged, Prompt
from models.sources.base import Prompts, PromptSource, check_disjoint


class Files(PromptSource):
    """Read `pool` and `held_out` (`{"prompt": …}` a line, or plain text) and `seed` (`{"prompt": …, "response": …}`).

    A line of `eft_seed` is `{"prompt": …, "response": …, "score": …}`.
    """

    execution_fields: ClassVar[frozenset[str]] = frozenset(
        {"pool", "held_out", "seed", "eft_seed"}
    )  # `digest_inputs` has them

    kind: Literal["files"] = "files"
    pool: Path = Field(description="prompts to generate from")
    held_out: Path = Field(description="prompts of the evaluation")
    seed: Path | None = Field(None, description="demonstrations for SFT; none: the base model is M_1")
    eft_seed: Path | None = Field(None, description="answers with somebody's scores, for the evaluator's EFT seed")
    drop_duplicates: bool = Field(False, description="drop repeated prompts; they are refused otherwise")

    @property
    def has_eft_seed(self) -> bool:  # noqa: D102
        return self.eft_seed is not None

    def load(self) -> Prompts:  # noqa: D102
        return check_disjoint(
            Prompts(
                seed=_demonstrations(self.seed) if self.seed else [],
                pool=self._prompts(self.pool),
                held_out=self._prompts(self.held_out),
                eft_seed=_judged(self.eft_seed) if self.eft_seed else (),
            )
        )

    def digest_inputs(self) -> str:  # noqa: D102
        files = (self.pool, self.held_out, self.seed, self.eft_seed)
        return digest_of([self.drop_duplicates, *[sha256_of(file) if file else None for file in files]])

    def _prompts(self, path: Path) -> list[Prompt]:
        first_seen: dict[str, int] = {}
        prompts = []
        for number, record in _records(path):
            text = record.get("prompt")
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f'{path}, line {number}: no prompt: write {{"prompt": "…"}} or a line of text')
            prompt = Prompt.of(text.strip())
            if prompt.id in first_seen:
                if self.drop_duplicates:
                    continue
                raise ValueError(
                    f"{path}, line {number} repeats line {first_seen[prompt.id]} ({prompt.text[:60]!r}): remove it, or "
                    "set prompts.drop_duplicates: true"
                )
            first_seen[prompt.id] = number
            prompts.append(prompt)
        if not prompts:
            raise ValueError(f"{path} holds no prompt: give at least one line")
        return prompts


def _demonstrations(path: Path) -> list[Demonstration]:
    return [_demonstration(record, f"{path}, line {number}") for number, record in _records(path)]


def _judged(path: Path) -> list[Judged]:
    rows = []
    for number, record in _records(path):
        shown, score = _demonstration(record, f"{path}, line {number}"), record.get("score")
        if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
            raise ValueError(f'{path}, line {number}: an EFT seed line has a number as its "score", got {score!r}')
        rows.append(Judged(shown.prompt, shown.response, float(score)))
    return rows


def _demonstration(record: dict[str, object], where: str) -> Demonstration:
    prompt, response = record.get("prompt"), record.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str) or not response.strip():
        raise ValueError(f'{where}: a seed line is {{"prompt": "…", "response": "…"}}')
    return Demonstration(prompt=prompt.strip(), response=response.strip())


def _records(path: Path) -> list[tuple[int, dict[str, object]]]:
    if not path.is_file():
        raise FileNotFoundError(f"prompt file {path} does not exist: check the path in the prompts section")
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv -t UTF-8"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix != ".jsonl":
        return [(number, {"prompt": line}) for number, line in numbered]
    records: list[tuple[int, dict[str, object]]] = []
    for number, line in numbered:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object")
        records.append((number, record))
    return records
