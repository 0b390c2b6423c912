"""Where a worker says which files experiments may name, they name no others: neither by path, nor by link, nor in a list."""

import os
from pathlib import Path

import pytest

from models.core.allowlist import check_places
from models.sources.files import Files


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder that experiments may name files of, the working directory too, and one that they may not."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "pool.txt").write_text("the film is\n")
    monkeypatch.chdir(inside)
    monkeypatch.setenv("NINEFOLD_FILES", str(inside))
    return inside, outside


@pytest.mark.parametrize(
    "named",
    [
        "../outside/pool.txt",
        "{outside}/pool.txt",
        "link.txt",
        "~/pool.txt",
        "./../outside",
        "folder/../../outside/pool.txt",
    ],
)
def test_what_lies_elsewhere_is_refused_by_name(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    inside, outside = places
    monkeypatch.setenv("HOME", str(outside))
    (inside / "link.txt").symlink_to(outside / "pool.txt")
    (inside / "folder").mkdir()
    with pytest.raises(ValueError, match=rf"pool names {outside}.*, and experiments here may name only .*{inside}"):
        Files(pool=Path(named.format(outside=outside)), held_out=Path("pool.txt"))


def test_an_empty_text_and_a_kind_are_no_paths(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (places[1] / "files").mkdir()
    monkeypatch.chdir(places[1])
    check_places({"kind": "files", "panel": "", "where": {"input": ""}})


@pytest.mark.parametrize("text", ["link", "./link", "{outside}", "~"])
def test_a_text_is_a_path_where_something_is_at_it(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    inside, outside = places
    monkeypatch.setenv("HOME", str(outside))
    (inside / "link").symlink_to(outside)
    with pytest.raises(ValueError, match=f"model names {outside}"):
        check_places({"model": {"deep": [text.format(outside=outside)]}})


@pytest.mark.parametrize(
    "text",
    ["pool.txt", "./pool.txt", "org/name", "{prompt}/{x}", "a" * 5000 + "/", "\0/", "chat", "http://h/v1", "~nobody/x"],
)
def test_what_lies_inside_or_is_no_file_passes(places: tuple[Path, Path], text: str) -> None:
    check_places({"text": text, "list": [text, {"deep": text}]})
    os.environ["NINEFOLD_FILES"] += f"{os.pathsep}{places[1]}"  # several, as in PATH
    check_places({"pool": places[1] / "pool.txt"})
