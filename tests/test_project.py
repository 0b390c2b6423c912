"""What holds for the project as a whole: its names, its shape, its README."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(p for folder in ("models", "tasks", "flows") for p in (ROOT / folder).rglob("*.py"))


def test_the_three_generic_names_resolve_to_this_project(tmp_path: Path) -> None:
    script = "import flows, tasks, models; print(flows.__file__, tasks.__file__, models.__file__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(p).parent for p in done.stdout.split()] == [ROOT / "flows", ROOT / "tasks", ROOT / "models"]


def test_no_module_is_named_after_the_standard_library() -> None:
    assert not {p.stem for p in SOURCES} & (set(sys.stdlib_module_names) - {"__init__"})


def test_no_file_is_longer_than_three_hundred_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 300}
    assert not long


def test_the_readme_names_every_file_of_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [str(p.relative_to(ROOT)) for p in SOURCES if p.name != "__init__.py" and p.name not in readme]
    assert not missing


def test_every_package_is_installed_and_nothing_else() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in SOURCES if p.name == "__init__.py"}
    assert set(listed) == found


def test_nothing_is_pickled_and_no_remote_code_is_trusted() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert not re.search(r"trust_remote_code=True|allow_pickle=True|torch\.load\(", text), path


def test_the_readme_opens_with_the_two_commands() -> None:
    opening = (ROOT / "README.md").read_text()[:1500]
    assert opening.index("make demo") < opening.index("make test")
