"""Results of stages in a bucket: what this project writes comes back, what somebody else has put there runs nothing."""

import base64
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.engine.results import SharedResults, UntrustedResult, checked


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.file,))


def record(result: object, **serializer: object) -> bytes:
    metadata = {"serializer": {"type": "json", **serializer}, "storage_key": "k", "prefect_version": "3.8.8"}
    return json.dumps({"metadata": metadata, "result": result}).encode()


def test_prefect_itself_would_run_what_a_record_holds(tmp_path: Path) -> None:
    from prefect._internal.result_records import ResultRecord

    planted = base64.encodebytes(pickle.dumps(Planted(tmp_path / "ran"))).decode()
    held = record(planted, type="pickle", picklelib="cloudpickle")
    ResultRecord.deserialize(held)
    assert (tmp_path / "ran").exists(), "or this guard is not needed any more"
    with pytest.raises(UntrustedResult, match="result stage-1 in .* wants to be read as pickle: this project has not"):
        checked(held, "stage-1")


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (json.dumps({"__class__": "subprocess.Popen", "data": ["true"]}), "holds a subprocess.Popen"),
        (json.dumps({"a": [{"__class__": "os.system", "data": "true"}]}), "holds a os.system"),
        ({"__class__": "os.system", "data": "true"}, "holds a os.system"),
        (
            json.dumps({"__class__": "flows.reporting.storage.write_text", "data": ["x", "y"]}),
            "holds a flows.reporting.storage.write_text",
        ),
        (
            json.dumps({"__class__": "tasks.engine.results.RemoteFileSystem", "data": {}}),
            "holds a tasks.engine.results.RemoteFileSystem",
        ),
        (json.dumps({"__exc_type__": "SystemExit", "message": "0"}), "holds a an exception"),
    ],
)
def test_only_this_projects_classes_are_made(result: object, what: str) -> None:
    with pytest.raises(UntrustedResult, match=what):
        checked(record(result), "stage-1")


@pytest.mark.parametrize(
    "held",
    [
        b"\x80\x04.",
        b"[]",
        b"{}",
        record("1", type="compressed/pickle"),
        record("1", object_decoder="os.system"),
        # of an older form, which goes before what is beside it
        json.dumps(json.loads(record("1")) | {"serializer": {"type": "pickle"}, "data": "gASVAAAA"}).encode(),
    ],
)
def test_nothing_else_is_a_record(held: bytes) -> None:
    with pytest.raises(UntrustedResult):
        checked(held, "stage-1")


def test_what_a_stage_returns_comes_back(s3: str) -> None:
    from prefect.results import ResultStore
    from prefect.serializers import JSONSerializer

    from tasks.engine.caching import StageResult
    from tasks.engine.store import Ref

    made = [StageResult(ref=Ref(uri=f"rows/{'a' * 32}.parquet", sha256="b" * 64), facts={"n": 1.0})]
    place = SharedResults(basepath=s3)
    store = ResultStore(result_storage=place, serializer=JSONSerializer())
    store.write(made, key="key")
    assert ResultStore(result_storage=place).read("key").result == made
