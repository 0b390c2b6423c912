"""Environments are built from locks: by uv, and by pip where uv reaches nothing; a lock that was changed is named."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deployments" / "locks"
NEVER = "http://127.0.0.1:9/simple"  # nobody listens there


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The script with its locks in a folder of their own, which a test may spoil."""
    shutil.copytree(LOCKS, tmp_path / "deployments" / "locks")
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def set_up(copy: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build the smallest environment that there is a lock of."""
    command = ["sh", str(copy / "scripts" / "setup.sh"), str(copy / "env"), "uv", "none", "uv"]
    return subprocess.run(command, env=os.environ | environment, cwd=copy, capture_output=True, text=True, timeout=300)


def test_an_environment_is_built_once_and_says_nothing(copy: Path) -> None:
    for _ in range(2):
        done = set_up(copy)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert subprocess.run([copy / "env" / "bin" / "uv", "--version"]).returncode == 0


def test_pip_does_it_where_uv_reaches_no_index(copy: Path) -> None:
    assert set_up(copy).returncode == 0
    lock = copy / "deployments" / "locks" / "uv.txt"
    other = subprocess.run(
        [copy / "env" / "bin" / "uv", "pip", "compile", "--quiet", "--generate-hashes", "-"],
        input="six==1.17.0",
        capture_output=True,
        text=True,
        check=True,
    )
    lock.write_text(lock.read_text() + other.stdout)
    command = ["sh", str(copy / "scripts" / "setup.sh"), str(copy / "env"), "uv", "none", "six"]
    nowhere = {"UV_DEFAULT_INDEX": NEVER, "UV_CACHE_DIR": str(copy / "cache")}
    done = subprocess.run(command, env=os.environ | nowhere, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "uv does not reach the package index" in done.stderr
    assert subprocess.run([copy / "env" / "bin" / "python", "-c", "import six"]).returncode == 0


def test_a_changed_hash_stops_the_setup_and_names_the_lock(copy: Path) -> None:
    lock = copy / "deployments" / "locks" / "uv.txt"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{64}", "sha256:" + "0" * 64, lock.read_text()))
    done = set_up(copy)
    assert done.returncode == 1
    assert "locks/uv.txt does not hold together" in done.stderr
    assert "make lock" in done.stderr


def test_an_unknown_lock_is_named(copy: Path) -> None:
    (copy / "deployments" / "locks" / "uv.txt").unlink()
    done = set_up(copy)
    assert done.returncode == 2
    assert "there is no" in done.stderr


def test_the_lock_holds_what_the_project_asks_for_and_no_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["quickstart"], *extras["dev"]]
    locked = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (LOCKS / "ninefold.txt").read_text(), re.M))
    for text in wanted:
        requirement = Requirement(text)
        if requirement.name not in {"torch", "ninefold"}:  # torch's build depends on the machine
            version = locked[requirement.name.lower().replace("_", "-")]
            assert requirement.specifier.contains(version, prereleases=True), text
    for lock in LOCKS.glob("*.txt"):
        assert "://" not in lock.read_text(), lock
