"""The Hugging Face hub: what comes from it is known by its commit, and has the checksums by which the hub names it."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from models.downloads import remembered_sha256, set_aside

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_CARD = ("README.md",)


@lru_cache(maxsize=16)  # one commit for the whole of a run
def folder(reference: str, wanted: tuple[str, ...], kind: Literal["model", "dataset"] = "model") -> Path:
    """Return the folder of `name` or `name@revision` with the files wanted, named by its commit; checked.

    Where the hub cannot be reached it is the local copy. Raises FileNotFoundError naming the remedy if there is none, and
    ValueError as `check`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = reference.partition("@")
    try:
        found = Path(snapshot_download(name, repo_type=kind, revision=revision or None, allow_patterns=list(wanted)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{kind} {reference!r} is neither on the hub nor in the local copy ({type(error).__name__}): check the "
            "name and revision, HF_TOKEN for a gated one, and HF_HUB_OFFLINE"
        ) from error
    check(found)
    return found


def file(dataset: str, name: str) -> Path:
    """Return a file of a dataset, checked; raise ValueError if it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(hf_hub_download(dataset, name, repo_type="dataset"))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{name} of the hub's dataset {dataset} cannot be fetched and is not cached: {error}"
        ) from error
    check(found)
    return found


def commit(dataset: str) -> str:
    """Return the commit of a dataset, `name` or `name@revision`, as of the first time that this process asked."""
    return folder(dataset, _CARD, "dataset").name


def rows(dataset: str, config: str | None, split: str) -> Any:  # noqa: ANN401
    """Return the rows of a split of a dataset, `name` or `name@revision`, at its `commit`, from checked files."""
    from datasets import load_dataset

    found = load_dataset(dataset.partition("@")[0], config, split=split, revision=commit(dataset))
    check(folder(dataset, _CARD, "dataset"))  # those too that have come since
    return found


def check(copy: Path) -> None:
    """Raise ValueError, and set the file aside, if a file of the local copy, or one of a folder, is not what its name says.

    There a file is a link to one that is named by its SHA-256 where it is large, and else by its Git blob's SHA-1. What is
    no link, as where there are none, has no such name, and is known by its commit only.
    """
    for link in [copy] if copy.is_file() else sorted(copy.rglob("*")):
        blob = link.resolve()
        if link.is_symlink() and blob.is_file() and (found := _named_as(blob)) != blob.name:
            set_aside(blob)
            raise ValueError(
                f"{link} has the checksum {found}, and the hub's is {blob.name}: it was set aside; run again to fetch it"
            )


def _named_as(blob: Path) -> str:
    """Return what a blob of these bytes is named by the hub; its name if that is no checksum."""
    from huggingface_hub.utils.sha import git_hash

    if _SHA256.fullmatch(blob.name):
        return remembered_sha256(blob)
    return git_hash(blob.read_bytes()) if _GIT.fullmatch(blob.name) else blob.name
