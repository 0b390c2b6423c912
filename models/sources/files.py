"""Prompts from text files of the user's own: JSONL or plain text, one prompt a line."""

import json
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from models.downloads import sha256_of
from models.plugins import digest_of
from models.preference import Demonstration, Prompt
from models.sources.base import Prompts, PromptSource, check_disjoint


class Files(PromptSource):
    """Read `pool` and `held_out` (`{"prompt": …}` a line, or plain text) and `seed` (`{"prompt": …, "response": …}`)."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"pool", "held_out", "seed"})  # `digest_inputs` has them

    kind: Literal["files"] = "files"
    pool: Path = Field(description="prompts to generate from")
    held_out: Path = Field(description="prompts of the evaluation")
    seed: Path | None = Field(None, description="demonstrations for SFT; none: the base model is M_1")
    drop_duplicates: bool = Field(False, description="drop repeated prompts; they are refused otherwise")

    def load(self) -> Prompts:  # noqa: D102
        return check_disjoint(
            Prompts(
                seed=_demonstrations(self.seed) if self.seed else [],
                pool=self._prompts(self.pool),
                held_out=self._prompts(self.held_out),
            )
        )

    def digest_inputs(self) -> str:  # noqa: D102
        files = [self.pool, self.held_out, *([self.seed] if self.seed else [])]
        return digest_of([self.drop_duplicates, *[sha256_of(file) for file in files]])

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
    rows = []
    for number, record in _records(path):
        prompt, response = record.get("prompt"), record.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str) or not response.strip():
            raise ValueError(f'{path}, line {number}: a seed line is {{"prompt": "…", "response": "…"}}')
        rows.append(Demonstration(prompt=prompt.strip(), response=response.strip()))
    return rows


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
