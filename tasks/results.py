"""Where Prefect keeps the results of stages: in this home, or beside a store that other machines see too."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from models.plugins import digest_of
from tasks.settings import settings

if TYPE_CHECKING:
    from prefect.filesystems import RemoteFileSystem


def result_options() -> dict[str, Any]:
    """Return the options of a Prefect task whose results every process with these settings is to find."""
    return {"result_storage": _shared(settings().results_url)} if settings().shares_store else {}


@lru_cache(maxsize=2)
def _shared(url: str) -> "RemoteFileSystem":
    """Return Prefect's block for a URL, made on its server if it is not there; it holds no key: fsspec finds its own."""
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.filesystems import RemoteFileSystem

    name = f"ninefold-{digest_of(url)}"
    block: Any
    try:
        block = RemoteFileSystem.load(name)
    except ValueError:
        block = RemoteFileSystem(basepath=url)
        try:
            block.save(name)
        except (ObjectAlreadyExists, ValueError):  # another process was first
            block = RemoteFileSystem.load(name)
    assert isinstance(block, RemoteFileSystem)  # noqa: S101 - not a coroutine: stages are called from synchronous flows
    return block
