"""Labels recorded in a table: real expert judgements, bought again at their recorded price without a network."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd

from models.cost import MICRO, MicroUsd
from models.downloads import remembered_sha256
from models.oracles.base import Oracle, Verdict
from models.preference import text_hash
from models.rubric import Rubric


class Replay(Oracle):
    """Replay judgements from a CSV, JSONL or Parquet file.

    A tuple that the table does not hold raises KeyError: the pool must come from the table.
    """

    description: ClassVar[str] = "expert labels recorded in a table"
    paid_on_loss: ClassVar[bool] = False

    kind: Literal["replay"] = "replay"
    path: Path
    prompt_column: str = "prompt"
    response_column: str = "response"
    label_column: str = "label"
    price_column: str | None = None
    micro_usd: MicroUsd = 0

    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:  # noqa: D102
        table = _table(self)
        key = (text_hash(prompt), text_hash(response))
        if key not in table:
            raise KeyError(f"{self.path} holds no label for prompt {prompt[:60]!r} with response {response[:60]!r}")
        score, micro_usd = table[key]
        return Verdict(score=score, raw=repr(score), micro_usd=micro_usd)

    def ceiling(self, prompt: str, response: str) -> MicroUsd:  # noqa: D102
        recorded = _table(self).get((text_hash(prompt), text_hash(response)))
        return self.micro_usd if recorded is None else recorded[1]

    def identity(self) -> list[Any]:  # noqa: D102
        # The file's bytes, not its place: the same table on another machine is the same expert.
        return [
            self.model_dump(mode="json", exclude={"path"}),
            remembered_sha256(self.path),
        ]

    def check(self) -> None:  # noqa: D102
        _table(self)


@lru_cache(maxsize=4)
def _table(oracle: Replay) -> dict[tuple[str, str], tuple[float, int]]:
    if not oracle.path.is_file():
        raise FileNotFoundError(f"label table {oracle.path} does not exist: set labelling.oracle.path")
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        ".csv": pd.read_csv,
        ".parquet": pd.read_parquet,
        ".jsonl": _read_jsonl,
    }
    if oracle.path.suffix not in readers:
        raise ValueError(f"label table {oracle.path} must end in one of {', '.join(readers)}")
    frame = readers[oracle.path.suffix](oracle.path)
    wanted = [oracle.prompt_column, oracle.response_column, oracle.label_column]
    wanted += [oracle.price_column] if oracle.price_column else []
    if missing := [column for column in wanted if column not in frame.columns]:
        raise ValueError(f"label table {oracle.path} has no column {missing}; its columns are {list(frame.columns)}")
    prices = (
        (frame[oracle.price_column].fillna(0) * MICRO).round().astype(int).tolist()
        if oracle.price_column
        else [oracle.micro_usd] * len(frame)
    )
    keys = zip(frame[oracle.prompt_column].map(text_hash), frame[oracle.response_column].map(text_hash), strict=True)
    answers = zip(frame[oracle.label_column].astype(float).tolist(), prices, strict=True)
    return dict(zip(keys, answers, strict=True))


def _read_jsonl(path: Path) -> pd.DataFrame:
    return pd.read_json(path, lines=True)
