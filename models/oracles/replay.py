"""Oracle: labels recorded in a table, replayed at their recorded price."""

from collections.abc import Callable
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from models.core.cache import remembered_sha256
from models.core.data import text_hash
from models.core.errors import ConfigError, MissingFileError
from models.core.money import MICRO, MicroUsd
from models.core.rubric import Rubric
from models.core.text_files import check_text
from models.oracles.base import Oracle, Verdict

if TYPE_CHECKING:
    import pandas as pd

_LEAST_PROBABILITY = 1e-7


class Replay(Oracle):
    """Replay judgements from a CSV, JSONL or Parquet file.

    A tuple that the table does not hold raises KeyError: the pool must come from the table. `scale: logit` turns a recorded
    probability into a score, log p/(1 − p), with p kept 1e-7 away from 0 and 1. A price that was not recorded is the median
    of those that were (`micro_usd` where none was).
    """

    description: ClassVar[str] = "oracle labels recorded in a table"
    billed_on_failure: ClassVar[bool] = False

    kind: Literal["replay"] = "replay"
    path: Path = Field(description="Table of recorded labels: CSV, JSONL or Parquet.")
    prompt_column: str = Field("prompt", description="Column of the prompt.")
    response_column: str = Field("response", description="Column of the response.")
    label_column: str = Field("label", description="Column of the label.")
    scale: Literal["as_recorded", "logit"] = Field(
        "as_recorded", description="How the label is read: as it is, or as log-odds."
    )
    price_column: str | None = Field(None, description="Column of the dollars paid.")
    micro_usd: MicroUsd = 0

    @property
    @override
    def costs_money(self) -> bool:
        return False

    @override
    def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
        table = _table(self)
        key = (text_hash(prompt), text_hash(response))
        if key not in table:
            raise KeyError(f"{self.path} holds no label for prompt {prompt[:60]!r} with response {response[:60]!r}")
        score, micro_usd = table[key]
        return Verdict(score=score, raw=repr(score), micro_usd=micro_usd)

    @override
    def max_cost(self, prompt: str, response: str) -> MicroUsd:
        recorded = _table(self).get((text_hash(prompt), text_hash(response)))
        return self.micro_usd if recorded is None else recorded[1]

    @override
    def identity(self) -> list[Any]:
        # The file's bytes, not its place, nor what an answer is said to have cost: the same table is the same oracle.
        return [
            self.model_dump(mode="json", exclude={"path", "price_column", "micro_usd"}),
            remembered_sha256(self.path),
        ]

    @override
    def check(self) -> None:
        _table(self)

    def frame(self) -> "pd.DataFrame":
        """Return the table: columns prompt, response, score, micro_usd, one row per tuple (the first of its judgements).

        Raises FileNotFoundError or ValueError naming the file, the column and the remedy.
        """
        return _read(self)


@lru_cache(maxsize=4)
def _table(oracle: Replay) -> dict[tuple[str, str], tuple[float, int]]:
    frame = _read(oracle)
    keys = zip(frame.prompt.map(text_hash), frame.response.map(text_hash), strict=True)
    return dict(zip(keys, zip(frame.score.tolist(), frame.micro_usd.tolist(), strict=True), strict=True))


def _read(oracle: Replay) -> "pd.DataFrame":
    import pandas as pd
    from scipy.special import logit

    if not oracle.path.is_file():
        raise MissingFileError(f"label table {oracle.path} does not exist: set labelling.oracle.path")
    readers: dict[str, Callable[[Replay], pd.DataFrame]] = {
        ".csv": _read_csv,
        ".parquet": lambda replay: pd.read_parquet(replay.path),
        ".jsonl": lambda replay: pd.read_json(replay.path, lines=True, dtype=False, convert_dates=False),
    }
    if (suffix := oracle.path.suffix.lower()) not in readers:
        raise ConfigError(f"label table {oracle.path} must end in one of {', '.join(readers)}")
    frame = readers[suffix](oracle)
    wanted = [oracle.prompt_column, oracle.response_column, oracle.label_column]
    wanted += [oracle.price_column] if oracle.price_column else []
    if missing := [column for column in wanted if column not in frame.columns]:
        raise ConfigError(f"label table {oracle.path} has no column {missing}; its columns are {list(frame.columns)}")
    for column in (oracle.prompt_column, oracle.response_column):
        frame[column] = [_text(value, f"label table {oracle.path}, column {column!r}") for value in frame[column]]
    frame = frame.drop_duplicates([oracle.prompt_column, oracle.response_column]).reset_index(drop=True)
    score = frame[oracle.label_column].astype(float)
    if score.isna().any():
        row = frame[score.isna()].iloc[0]
        raise ConfigError(
            f"label table {oracle.path} has no label for prompt {row[oracle.prompt_column][:60]!r} with response "
            f"{row[oracle.response_column][:60]!r}: remove the row or fill it in"
        )
    if oracle.scale == "logit":
        if not score.between(0, 1).all():
            wrong = score[~score.between(0, 1)].iloc[0]
            raise ConfigError(
                f"label table {oracle.path} holds {wrong:g}, which is no probability: set labelling.oracle.scale to "
                "as_recorded"
            )
        score = pd.Series(logit(score.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)), index=score.index)
    price: Any = oracle.micro_usd
    if oracle.price_column:
        recorded = frame[oracle.price_column].astype(float)
        usual = recorded.median() if recorded.notna().any() else oracle.micro_usd / MICRO
        price = (recorded.fillna(usual) * MICRO).round().astype(int)
    return pd.DataFrame(
        {
            "prompt": frame[oracle.prompt_column],
            "response": frame[oracle.response_column],
            "score": score,
            "micro_usd": price,
        }
    )


def _text(value: object, where: str) -> str:
    """Return a text, or a whole number as one; raise ConfigError for what is none: nothing, a list of messages."""
    if isinstance(value, str) or (isinstance(value, Integral) and not isinstance(value, bool)):
        return check_text(str(value), where)
    raise ConfigError(
        f"{where} holds {str(value)[:60]!r} ({type(value).__name__}), and a text is needed: conversations are "
        "not read yet; remove the row or fill it in"
    )


def _read_csv(oracle: Replay) -> "pd.DataFrame":
    """Read texts as they stand: an answer of "None" or "NA" is an answer, and one of digits is a text."""
    import pandas as pd

    missing = {column: ["", "NA", "NaN", "nan"] for column in (oracle.label_column, oracle.price_column) if column}
    return pd.read_csv(oracle.path, dtype=_texts(oracle), keep_default_na=False, na_values=missing)


def _texts(oracle: Replay) -> dict[str, type[str]]:
    return {oracle.prompt_column: str, oracle.response_column: str}
