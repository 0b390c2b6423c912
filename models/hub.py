"""The Hugging Face hub: what comes from it is known by its commit, and has the checksums by which the hub names it."""

import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from models.downloads import cache_folder, set_aside, sha256_of

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_CARDS = ("README.md", ".huggingface.yaml")  # where a dataset says which of its files are which split
_TABLES = tuple(
    f"*.{kind}{packed}" for kind in ("parquet", "jsonl", "json", "csv", "tsv", "txt") for packed in ("", ".gz")
)


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
    check(found, wanted)
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
    check(found.parent, (name,))
    return found


def commit(dataset: str) -> str:
    """Return the commit of a dataset, `name` or `name@revision`, as of the first time that this process asked."""
    return folder(dataset, _CARDS, "dataset").name


def rows(dataset: str, config: str | None, split: str) -> Any:  # noqa: ANN401
    """Return the rows of a split of a dataset, `name` or `name@revision`, at its `commit`, from checked files.

    All of its tables are fetched. Raises ValueError if its card says that a split is anywhere but in its own files.
    """
    from datasets import load_dataset

    copy = folder(f"{dataset.partition('@')[0]}@{commit(dataset)}", (*_CARDS, *_TABLES), "dataset")
    _check_card(copy)
    return load_dataset(str(copy), config, split=split)


def check(copy: Path, wanted: tuple[str, ...]) -> None:
    """Raise ValueError, and set the file aside, if a wanted file of a local copy does not have the bytes that its name says.

    There a file is a link to one that is named by its SHA-256 where it is large, and else by its Git blob's SHA-1. What is
    no link, as on file systems without them, has no such name, and is known by its commit only. Read once per machine.
    """
    for link in sorted({link for pattern in wanted for link in copy.rglob(pattern) if link.is_symlink()}):
        named = link.parent / os.readlink(link)  # which may be a link itself, to bytes that repositories share
        if not named.is_file() or _known(named).exists():
            continue
        if (found := _checksum(named)) != named.name:
            with suppress(OSError):
                set_aside(named.resolve())
            raise ValueError(
                f"{link} has the checksum {found}, and the hub's is {named.name}: it was set aside, or cannot be; run again "
                "to fetch it"
            )
        _known(named).touch()


def _known(named: Path) -> Path:
    """Return the mark that is there when these bytes were found to be those of their name."""
    seen = named.stat()
    marks = cache_folder() / "checked"
    marks.mkdir(exist_ok=True)
    return marks / f"{named.name}-{seen.st_size}-{seen.st_mtime_ns}"


def _checksum(named: Path) -> str:
    """Return what the hub names these bytes by; the name that they have if that is no checksum."""
    from huggingface_hub.utils.sha import git_hash

    if _SHA256.fullmatch(named.name):
        return sha256_of(named)
    return git_hash(named.read_bytes()) if _GIT.fullmatch(named.name) else named.name


def _check_card(copy: Path) -> None:
    """Raise ValueError if a dataset's card names files that are not its own: they would be read on this machine."""
    import yaml
    from huggingface_hub import metadata_load

    for name in _CARDS:
        if not (path := copy / name).is_file():
            continue
        said = metadata_load(path) if name.endswith(".md") else yaml.safe_load(path.read_text(encoding="utf-8"))
        for place in _texts((said or {}).get("configs")):
            if place.startswith(("/", "~")) or ".." in Path(place).parts or "::" in place or "://" in place:
                raise ValueError(
                    f"dataset {copy.parents[1].name} has {place!r} in its {name}: a dataset's files are its own"
                )


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []
