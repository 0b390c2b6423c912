"""Where a worker says which files experiments may name, they name no others: neither by path, nor by link, nor in a list."""

import os
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from flows.config.loading import OrFile, check_files
from models.core.allowlist import FolderOrName
from models.core.errors import ConfigError
from models.core.registry import Frozen, Plugin
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
        check_files(Files(pool=Path(named.format(outside=outside)), held_out=Path("pool.txt")))


class Named(Frozen):
    """Parameters with a text that may be a folder, wherever it stands, and one that is none."""

    model: Annotated[str | list[str] | dict[str, list[str]], FolderOrName] = ""
    name: str = ""
    pool: Path = Path("pool.txt")


def test_a_text_that_is_no_path_is_none_whatever_lies_there(places: tuple[Path, Path]) -> None:
    (places[1] / "docs").mkdir()
    os.chdir(places[1])
    check_files(Named(name="docs", model="", pool=places[0] / "pool.txt"))


@pytest.mark.parametrize("text", ["link", "./link", "{outside}", "~"])
def test_a_text_is_a_path_where_something_is_at_it(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    inside, outside = places
    monkeypatch.setenv("HOME", str(outside))
    (inside / "link").symlink_to(outside)
    with pytest.raises(ConfigError, match=f"model names {outside}"):
        check_files(Named(model={"deep": [text.format(outside=outside)]}))


@pytest.mark.parametrize(
    "text",
    ["pool.txt", "./pool.txt", "org/name", "{prompt}/{x}", "a" * 5000 + "/", "\0/", "chat", "http://h/v1", "~nobody/x"],
)
def test_what_lies_inside_or_is_no_file_passes(places: tuple[Path, Path], text: str) -> None:
    check_files(Named(model=[text, text]))
    os.environ["NINEFOLD_FILES"] += f"{os.pathsep}{places[1]}"  # several, as in PATH
    check_files(Named(pool=places[1] / "pool.txt"))


def test_whatever_is_another_packages_may_be_a_path(places: tuple[Path, Path]) -> None:
    class Foreign(Plugin):
        """A plugin of another package, whose texts say nothing of themselves."""

        where: str

    with pytest.raises(ConfigError, match="where names"):
        check_files(Foreign(where=str(places[1])))


def test_the_parameter_of_a_flow_is_checked_as_a_file_is(places: tuple[Path, Path]) -> None:
    parameter = TypeAdapter(Annotated[Named, OrFile()])
    assert parameter.validate_python({"name": "x"}) == Named(name="x")
    for given in (
        {"pool": str(places[1] / "pool.txt")},
        Named(pool=places[1] / "pool.txt"),
        str(places[1] / "pool.txt"),
    ):
        with pytest.raises(ValueError, match="may name only what lies in"):
            parameter.validate_python(given)
