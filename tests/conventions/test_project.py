"""What holds for the project as a whole: its names, its shape, its README."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for folder in ("models", "tasks", "flows") for p in (ROOT / folder).rglob("*.py"))


def test_the_three_generic_names_resolve_to_this_project(tmp_path: Path) -> None:
    script = "import flows, tasks, models; print(flows.__file__, tasks.__file__, models.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(p).parent for p in done.stdout.split()] == [ROOT / "flows", ROOT / "tasks", ROOT / "models"]


def test_every_file_lies_in_a_room_and_every_room_says_what_belongs_in_it() -> None:
    flat = {p.name for p in SOURCES if p.parent in {ROOT / "models", ROOT / "tasks"}}
    assert flat == {"__init__.py"}, "models/ and tasks/ have rooms only"
    for room in {p.parent for p in SOURCES}:
        code = ast.parse((room / "__init__.py").read_text())
        assert len(code.body) == 1, f"{room} says what belongs in it, and re-exports nothing"
        assert len((ast.get_docstring(code) or "").splitlines()) == 1, room


def test_no_file_is_longer_than_five_hundred_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_the_readme_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2].partition("```\n\n")[0]
    assert not [p.parent.name for p in SOURCES if p.name == "__init__.py" and f"{p.parent.name}/" not in tree]


def test_nothing_is_pickled_and_no_remote_code_is_trusted() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert not re.search(r"trust_remote_code=True|allow_pickle=True|torch\.load\(", text), path


def test_the_readme_opens_with_the_two_commands() -> None:
    opening = (ROOT / "README.md").read_text()[:1500]
    assert opening.index("make demo") < opening.index("make test")
