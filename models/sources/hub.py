"""Prompt source: datasets of the hub or of a folder, their columns rendered into prompts."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt
from typing_extensions import override

from models.core import hub
from models.core.allowlist import FolderOrName
from models.core.cache import sha256_of
from models.core.data import Demonstration, Prompt, ScoredExample
from models.core.errors import ConfigError, MissingFileError
from models.core.registry import Frozen, digest_of
from models.core.text_files import check_text
from models.sources.base import Prompts, PromptSource, check_disjoint, same_prompt

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

_COLUMN = re.compile(r"\{([\w.]+)\}")
_PARENT = "parent."


class DatasetSpec(Frozen):
    """Rows of a dataset. `prompt` and `response` are texts with `{column}` in them.

    In a table of conversation trees, where `parent` is the column that names the message answered and `id` the one that it
    names, `{parent.column}` is a column of that message.
    """

    dataset: Annotated[str, FolderOrName] = Field(
        description="The dataset: a hub id `org/name@revision`, or a folder of JSONL, CSV or Parquet files."
    )
    config: str | None = Field(None, description="Configuration of the dataset; its default one if not given.")
    split: str = Field("train", description="Split of the dataset.")
    prompt: str = Field(description="Template of the prompt: a text with `{column}` in it.")
    response: str | None = Field(None, description="Template of the response, for demonstrations.")
    score: str | None = Field(
        None, description="Template of the score, for EFT examples: a number, more is better, such as `-{rank}`."
    )
    where: dict[str, Any] = Field({}, description="Columns, and the value that a row must have in each.")
    id: str = Field("id", description="Column that names a row.")
    parent: str | None = Field(None, description="Column that names the message that a row answers.")
    rows: PositiveInt = Field(description="Rows drawn at random.")

    def texts(self, seed: int) -> Iterator[tuple[str, str, str]]:
        """Yield (prompt, response, score) of the kept rows in random order; raise ConfigError naming a missing column."""
        data = self._load()
        templates = [template or "" for template in (self.prompt, self.response, self.score)]
        wanted = {*self.where, *(name for template in templates for name in _COLUMN.findall(template))}
        wanted |= {self.id, self.parent} if self.parent else set()
        columns = {name.removeprefix(_PARENT) if self.parent else name for name in wanted}
        if missing := columns - set(data.column_names):
            raise ConfigError(f"dataset {self.dataset} has no column {sorted(missing)}: it has {data.column_names}")
        held = {name: data[name] for name in columns}
        row_of = {key: row for row, key in enumerate(data[self.id])} if self.parent else {}

        def value(row: int, name: str) -> object:
            if self.parent and name.startswith(_PARENT):
                row, name = row_of[held[self.parent][row]], name.removeprefix(_PARENT)
            return held[name][row]

        def text(row: int, template: str) -> str | None:
            said = {name: self._said(value(row, name), name) for name in _COLUMN.findall(template)}
            if None in said.values():
                return None
            return _COLUMN.sub(lambda found: str(said[found[1]]), template).strip()

        empty = 0
        try:
            for row in np.random.default_rng(seed).permutation(len(data)).tolist():
                if self.parent and held[self.parent][row] not in row_of:
                    continue
                if all(value(row, name) == kept for name, kept in self.where.items()):
                    prompt, response, score = (text(row, template) for template in templates)
                    if prompt is None or response is None or score is None:
                        empty += 1
                    else:
                        yield prompt, response, score
        finally:  # whoever asks may have enough
            if empty:
                what = "rows of this kind hold no value where one is needed: left out"
                log.warning("dataset %s: %d %s", self.dataset, empty, what)

    def _said(self, value: object, column: str) -> str | None:
        """Return a value as a text; None for none. Raises ConfigError for what is no text: a list of messages."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if not isinstance(value, str | int | float):
            raise ConfigError(
                f"dataset {self.dataset}: column {column!r} holds a {type(value).__name__}, and a text is needed: "
                "conversations and nested columns are not read yet; name a column of texts"
            )
        return check_text(str(value), f"dataset {self.dataset}, column {column!r}")

    def digest_inputs(self) -> str:
        """Return the digest of a folder's files, or the hub's commit: a branch that moves is another dataset."""
        if (folder := Path(self.dataset)).is_dir():
            return digest_of([sha256_of(file) for file in sorted(folder.rglob("*")) if file.is_file()])
        return hub.commit(self.dataset)

    def _load(self) -> "Dataset":
        from datasets import load_dataset

        if Path(self.dataset).is_dir():
            hub.check_card(Path(self.dataset))
            return load_dataset(self.dataset, self.config, split=self.split)
        name = self.dataset.partition("@")[0]
        if name.count("/") != 1 or name[0] in "./~":
            raise MissingFileError(f"dataset {self.dataset!r} is neither a folder nor a hub id such as org/name")
        return hub.rows(self.dataset, self.config, self.split)


class Hub(PromptSource):
    """The seed of one dataset; the pool and the held-out prompts of another, disjoint, each prompt once."""

    kind: Literal["hub"] = "hub"
    pool: DatasetSpec
    demonstrations: DatasetSpec | None = None
    eft_examples: DatasetSpec | None = None
    held_out: PositiveInt = Field(description="Held-out prompts: further rows of the pool's dataset.")
    sample_seed: NonNegativeInt = Field(0, description="Seed of the draw of rows.")

    @property
    @override
    def has_eft_examples(self) -> bool:
        return self.eft_examples is not None

    @override
    def load(self) -> Prompts:
        demonstrations, eft_examples = self._demonstrations(), self._judged()
        taken = {same_prompt(row.prompt) for rows in (demonstrations, eft_examples) for row in rows}
        prompts: dict[str, Prompt] = {}
        for text, _, _ in self.pool.texts(self.sample_seed):
            if text and (key := same_prompt(text)) not in taken:
                prompts.setdefault(key, Prompt.of(text))
            if len(prompts) == self.pool.rows + self.held_out:
                break
        found = list(prompts.values())
        if len(found) <= self.held_out:
            raise ConfigError(
                f"dataset {self.pool.dataset} has {len(found)} distinct prompts of this kind, and {self.held_out} are held "
                "out: lower prompts.held_out or keep more rows"
            )
        pool, held_out = found[self.held_out :], found[: self.held_out]
        return check_disjoint(
            Prompts(demonstrations=demonstrations, pool=pool, held_out=held_out, eft_examples=eft_examples)
        )

    @override
    def digest_inputs(self) -> str:
        return digest_of(
            [table.digest_inputs() for table in (self.pool, self.demonstrations, self.eft_examples) if table]
        )

    def _demonstrations(self) -> list[Demonstration]:
        if self.demonstrations is None:
            return []
        if self.demonstrations.response is None:
            raise ConfigError(
                "prompts.demonstrations.response is missing: a demonstration has an answer, such as '{targets}'"
            )
        rows: list[Demonstration] = []
        for prompt, response, _ in self.demonstrations.texts(self.sample_seed):
            if prompt and response:
                rows.append(Demonstration(prompt, response))
            if len(rows) == self.demonstrations.rows:
                break
        return rows

    def _judged(self) -> list[ScoredExample]:
        """Return the EFT examples; rows whose score is no number (a message that nobody has ranked) are not in it."""
        if self.eft_examples is None:
            return []
        if self.eft_examples.response is None or self.eft_examples.score is None:
            raise ConfigError("prompts.eft_examples needs a response and a score, such as '{text}' and '-{rank}'")
        rows: list[ScoredExample] = []
        for prompt, response, told in self.eft_examples.texts(self.sample_seed):
            with suppress(ValueError):
                score = float(told)
                if prompt and response and math.isfinite(score):
                    rows.append(ScoredExample(prompt, response, score))
            if len(rows) == self.eft_examples.rows:
                break
        if not rows:
            raise ConfigError(
                f"dataset {self.eft_examples.dataset} has no row of this kind whose score "
                f"{self.eft_examples.score!r} is a number: check prompts.eft_examples.score and where"
            )
        return rows
