"""Prefect result storage and serialisation, which loads only this project's types."""

import json
import logging
import sys
import time
from contextlib import suppress
from functools import lru_cache
from typing import Any

from prefect.filesystems import RemoteFileSystem
from pydantic import BaseModel

from models.core.errors import ConfigError
from models.core.registry import digest_of
from tasks.engine.settings import settings

log = logging.getLogger(__name__)

_OURS = ("models.", "tasks.", "flows.")  # packages of the classes that results are made of
_MADE_WITHIN, _LOOK_SECONDS = 30.0, 0.2
_PARTS = {"metadata", "result"}  # of a record; those of older forms would go before them


class UntrustedResult(ConfigError):
    """A shared result asks to be read in a way that would run code which is not this project's."""


class SharedResults(RemoteFileSystem):
    """Prefect's results in a bucket, read with less trust: Prefect itself unpickles whatever a record says is pickled.

    By fsspec, as the store, with keys from the environment: a block of prefect-aws would keep them in Prefect's database.
    """

    _block_type_name = "Ninefold results"
    _block_type_slug = "ninefold-results"

    async def aread_path(self, path: str) -> bytes:
        """Return a record that `checked` lets through."""
        return checked(await super().aread_path(path), path)

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]  # Prefect declares its coroutine
        """Return a record that `checked` lets through; Prefect says with `_sync` which of the two it calls."""
        with self.filesystem.open(self._resolve_path(path), "rb") as file:
            return checked(file.read(), path)


def checked(record: bytes, path: str) -> bytes:
    """Return a record of a result if it is JSON of this project's classes only; else raise UntrustedResult naming it."""

    def trusted(value: dict[str, Any]) -> dict[str, Any]:
        if "__exc_type__" in value or ("__class__" in value and not _is_ours(value["__class__"])):
            raise _refusal(path, f"holds a {value.get('__class__', 'an exception')}")
        return value

    try:
        content = json.loads(record)
        serializer = content["metadata"]["serializer"]
        result = content["result"]
        parts = content.keys()
    except (ValueError, KeyError, TypeError) as error:
        raise _refusal(path, "is no record of Prefect's") from error
    if (
        parts != _PARTS
        or serializer.get("type") != "json"
        or serializer.get("jsonlib", "json") != "json"
        or _decoder(serializer)
    ):
        raise _refusal(path, f"wants to be read as {serializer.get('type')}")
    json.loads(result if isinstance(result, str) else json.dumps(result), object_hook=trusted)
    return json.dumps(content).encode()  # nothing that was not looked at


def _is_ours(name: object) -> bool:
    """Whether a name is that of a model of this project, in the module where it is made; nothing is imported to find out."""
    module, _, attribute = str(name).rpartition(".")
    found = getattr(sys.modules.get(module), attribute, None) if module.startswith(_OURS) else None
    return isinstance(found, type) and issubclass(found, BaseModel) and found.__module__ == module


def _decoder(serializer: dict[str, Any]) -> bool:
    """Whether a record names a decoder that is not Prefect's own."""
    return serializer.get("object_decoder") not in (None, "prefect.serializers.prefect_json_object_decoder")


def _refusal(path: str, what: str) -> UntrustedResult:
    refusal = UntrustedResult(
        f"result {path} in {settings().results_url} {what}: this project has not written it so, and computes it again. Find "
        "out who may write there"
    )
    log.warning("%s", refusal)  # Prefect takes what cannot be read for what is not there, and says nothing
    return refusal


def result_options() -> dict[str, Any]:
    """Return the options of a Prefect task whose results every process with these settings is to find."""
    return {"result_storage": _shared(settings().results_url)} if settings().shares_store else {}


@lru_cache(maxsize=2)
def _shared(url: str) -> SharedResults:
    """Return Prefect's block for a URL, made on its server if it is not there; it holds no key: fsspec finds its own."""
    from prefect.exceptions import ObjectAlreadyExists

    name, block = f"ninefold-{digest_of(url)}", SharedResults(basepath=url)
    deadline = time.monotonic() + _MADE_WITHIN
    while True:
        with suppress(ValueError):
            found: Any = SharedResults.load(name)
            assert isinstance(found, SharedResults)  # noqa: S101 - not a coroutine: stages are called from synchronous flows
            return found
        try:
            block.save(name)
            return block
        except (ObjectAlreadyExists, ValueError):  # another process is making it: first its type, then the block
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)
