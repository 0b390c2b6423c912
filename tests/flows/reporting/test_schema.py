"""A run's report survives its file whole; what is not known is null there, and NaN here."""

import json
import math
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from flows.reporting.schema import BestOf, CurvePoint
from flows.reporting.storage import report_in
from models.metrics.intervals import Interval

INTERVAL = TypeAdapter(Interval)


def test_an_interval_is_written_as_three_named_numbers_and_read_again() -> None:
    found = BestOf(count=3, win_rate=Interval(0.5, 0.25, 0.75), gain=Interval(0.1, math.nan, math.nan), kl=0.4)
    written = json.loads(found.model_dump_json())
    assert written["win_rate"] == {"mean": 0.5, "low": 0.25, "high": 0.75}
    assert written["gain"] == {"mean": 0.1, "low": None, "high": None}
    assert found.model_dump(mode="json") == written
    for again in (BestOf.model_validate_json(json.dumps(written)), BestOf.model_validate(written)):
        assert again.win_rate == Interval(0.5, 0.25, 0.75)
        assert again.gain.mean == 0.1
        assert math.isnan(again.gain.low)


@pytest.mark.parametrize("wrong", [[0.5, 0.2, 0.8], {"mean": 0.5}, {"mean": 0, "low": 0, "high": 0, "p": 1}, None])
def test_what_is_no_interval_is_refused(wrong: object) -> None:
    with pytest.raises(ValidationError):
        INTERVAL.validate_python(wrong)


def test_the_schema_says_what_an_interval_is() -> None:
    assert set(INTERVAL.json_schema()["properties"]) == {"mean", "low", "high"}


def test_numbers_that_are_not_known_are_null_in_json() -> None:
    point = CurvePoint(share=0, kl=math.nan, oracle_mean=1, oracle_std=0, proxy_mean=math.inf, proxy_std=0)
    written = json.loads(point.model_dump_json())
    assert (written["kl"], written["proxy_mean"]) == (None, None)
    assert math.isnan(CurvePoint.model_validate(written).kl)


@pytest.mark.parametrize("text", ['{"name": "a study", "arms": []}', '{"schema_version": 99}', "no JSON", ""])
def test_what_is_no_report_of_a_run_of_this_version_is_none(tmp_path: Path, text: str) -> None:
    assert report_in(tmp_path) is None
    (tmp_path / "report.json").write_text(text)
    assert report_in(tmp_path) is None
