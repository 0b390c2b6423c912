"""Downloads from the Hugging Face hub, pinned by commit and verified by checksum."""

import os
import posixpath
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models.core.cache import cache_folder, set_aside, sha256_of
from models.core.errors import ConfigError, MissingFileError

if TYPE_CHECKING:
    from datasets import Dataset

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
_CARDS = ("README.md", ".huggingface.yaml")  # where a dataset says which of its files are which split
_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_TABLES = tuple(
    f"*.{kind}{by}" for kind in ("parquet", "arrow", "jsonl", "ndjson", "json", "csv", "tsv") for by in _PACKED
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
        raise MissingFileError(
            f"{kind} {reference!r} is neither on the hub nor in the local copy ({type(error).__name__}): check the "
            "name and revision, HF_TOKEN for a gated one, and HF_HUB_OFFLINE"
        ) from error
    check(found, wanted)
    return found


def file(dataset: str, name: str) -> Path:
    """Return a file of a dataset, checked; raise ConfigError if it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = Path(hf_hub_download(dataset, name, repo_type="dataset"))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(
            f"{name} of the hub's dataset {dataset} cannot be fetched and is not cached: {error}"
        ) from error
    check(found.parent, (found.name,))
    return found


def commit(dataset: str) -> str:
    """Return the commit of a dataset, `name` or `name@revision`, as of the first time that this process asked."""
    return folder(dataset, _CARDS, "dataset").name


def rows(dataset: str, config: str | None, split: str) -> "Dataset":
    """Return the rows of a split of a dataset, `name` or `name@revision`, at its `commit`, from checked files.

    The files that its card gives to the configuration are fetched, or all of its tables (plain texts are none) if the card
    names none. Raises ConfigError as `check_card`.
    """
    from datasets import load_dataset

    at = f"{dataset.partition('@')[0]}@{commit(dataset)}"
    named = check_card(folder(at, _CARDS, "dataset"), config)
    return load_dataset(str(folder(at, (*_CARDS, *(named or _TABLES)), "dataset")), config, split=split)


def check(copy: Path, wanted: tuple[str, ...]) -> None:
    """Raise ConfigError, and set the file aside, if a wanted file of a local copy has not the bytes that its name says.

    There a file is a link to one that is named by its SHA-256 where it is large, and else by its Git blob's SHA-1. What is
    no link, as on file systems without them, has no such name, and is known by its commit only. Bytes are read once per
    machine. Raises FileNotFoundError for a link that leads nowhere, as to what was set aside.
    """
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

    links = [str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_symlink()]
    for link in (copy / name for name in filter_repo_objects(sorted(links), allow_patterns=list(wanted))):
        named = link.parent / os.readlink(link)  # which may be a link itself, to bytes that repositories share
        mark = _mark(named)
        if mark is not None and mark.exists():
            continue
        if (found := _checksum(named)) != named.name:
            with suppress(OSError):
                set_aside(named.resolve())
            raise ConfigError(
                f"{link} has the checksum {found}, and the hub's is {named.name}: it was set aside, or cannot be; run again "
                "to fetch it"
            )
        if mark is not None:
            with suppress(OSError):
                mark.touch()


def check_card(copy: Path, config: str | None = None) -> tuple[str, ...]:
    """Return the patterns of the files that a dataset's card gives to a configuration; none if it says nothing.

    Raises ConfigError if any configuration has files that are not the dataset's own: they would be read on this machine.
    """
    import yaml
    from huggingface_hub import metadata_load

    configs: list[dict[str, Any]] = []
    for name in _CARDS:
        if (path := copy / name).is_file():
            said = metadata_load(path) if name.endswith(".md") else yaml.safe_load(path.read_text(encoding="utf-8"))
            found = said.get("configs") if isinstance(said, dict) else None
            configs += [each for each in found or [] if isinstance(each, dict)]
    for place in (place for each in configs for place in _places(each)):
        if place.startswith(("/", "~")) or ".." in Path(place).parts or ":" in place:
            raise ConfigError(f"the card of dataset {copy} names {place!r}: a dataset's files are its own")
    if not all(each.get("data_files") for each in configs):
        return ()  # datasets looks into the folders of all configurations, whichever is asked for
    # and at the first one's files
    chosen = [each for each in configs if each.get("config_name") == (config or "default") or each.get("default")]
    places = [posixpath.normpath(place) for each in [*configs[:1], *chosen] for place in _texts(each["data_files"])]
    return tuple(dict.fromkeys(form for place in places for form in (place, place.replace("**/", ""))))


def _places(config: dict[str, Any]) -> list[str]:
    """Return the patterns of a configuration's files."""
    return [*_texts(config.get("data_files")), *_texts(config.get("data_dir"))]


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        value = [value["path"]] if "path" in value else list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def _mark(named: Path) -> Path | None:
    """Return the mark that is there when these bytes were found to be those of their name; None where none can be made."""
    try:
        seen = named.stat()
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{named} is gone from the hub's local copy: run again where the hub is reached"
        ) from error
    try:
        marks = cache_folder() / "checked"
        marks.mkdir(exist_ok=True)
    except OSError:
        return None
    return marks / f"{named.name}-{seen.st_size}-{seen.st_mtime_ns}"


def _checksum(named: Path) -> str:
    """Return what the hub names these bytes by; the name that they have if that is no checksum."""
    from huggingface_hub.utils.sha import git_hash

    if _SHA256.fullmatch(named.name):
        return sha256_of(named)
    return git_hash(named.read_bytes()) if _GIT.fullmatch(named.name) else named.name
