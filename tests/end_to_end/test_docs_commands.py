"""The guide in docs/: its files are written, its commands executed in order, and its reference is what the models say.

In the places of a 135M model and of a server of the reader's are a tiny model and a judge on loopback; the quickstart's file
is a small one. The commands are those of the page, word for word but for the server's ports.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.support.fake_judge import LoopbackJudge
from tests.support.isolation import SESSION
from tests.support.processes import finished, free_port, with_prefect, without_prefect
from tests.support.warm import program

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MODEL, JUDGE = "smollm2-135m-instruct", "http://127.0.0.1:8000/v1"


class Page(NamedTuple):
    """What a page asks of its reader: files by name, and commands."""

    files: dict[str, str]
    commands: str


def page(name: str, **instead: str) -> Page:
    """Return a page's files and commands, with what is given `instead` of the texts of that name above."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for which, replacement in instead.items():
        assert globals()[which] in text
        text = text.replace(globals()[which], replacement)
    blocks = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert all(file or language == "bash" for language, file, _ in blocks), "a block is a file or commands"
    return Page({file: body for _, file, body in blocks if file}, "".join(b for _, file, b in blocks if not file))


def follow(commands: str, folder: Path, **environment: str) -> str:
    """Execute the commands in one shell that stops at the first failure; return what they said."""
    with program("ninefold", "flows.cli.main", SESSION.folder) as programs:
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = {"PATH": path, "NINEFOLD_HOME": str(folder / "artifacts"), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "-ex", "-c", commands],
            cwd=folder,
            env={**without_prefect(), **environment, **own},
            capture_output=True,
            text=True,
            timeout=800,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "reader"
    place.mkdir()
    return place


def test_the_tutorial_from_the_first_run_to_a_nightly_ablation(
    folder: Path, tiny_model_path: Path, tiny_settings: dict[str, Any]
) -> None:
    mlflow, prefect = free_port(), free_port()
    shutil.copytree(ROOT / "deployments", folder / "deployments")
    small = folder / "deployments" / "experiments" / "quickstart.yaml"
    small.write_text(yaml.safe_dump(tiny_settings | {"name": "quickstart"}))
    with LoopbackJudge() as judge:
        tutorial = page("getting-started/tutorial.md", MODEL=str(tiny_model_path), JUDGE=judge.url)
        for name, body in tutorial.files.items():
            (folder / name).write_text(body)
        ports = {"NINEFOLD_MLFLOW_PORT": str(mlflow), "NINEFOLD_PREFECT_PORT": str(prefect)}
        try:
            said = follow(tutorial.commands, folder, PYTHONPATH=str(ROOT), **ports)
        finally:
            follow("ninefold down", folder, PYTHONPATH=str(ROOT))
        assert judge.served["reply"] > 24
        refused = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "labels", "injection", "judged.yaml", "--replicate", "unattended"],
            cwd=folder,
            env=without_prefect()
            | {"NINEFOLD_HOME": str(folder / "artifacts"), "PYTHONPATH": str(ROOT), "JUDGE_KEY": "x"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert "nothing was bought: --yes answers where nobody can be asked" in refused.stderr
    assert "quickstart: what 10 queries bought" in said
    assert said.count("mine: what 24 queries bought") == 3, "once run, twice again"
    assert "judged: what 24 queries bought" in said
    assert "slogans.soft.queries-24.s1" in said
    assert "executed    nothing: all was in the cache" in said
    assert "executed    fit_evaluator" in said
    assert f"http://127.0.0.1:{mlflow}/#/experiments" in said
    assert (folder / "exported" / "preferences" / "README.md").is_file()
    assert (folder / "artifacts" / "reports" / "slogans" / "compare.html").is_file()


@pytest.mark.usefixtures("prefect_server")
def test_plugins_of_ones_own_are_found_by_their_file(folder: Path, tiny_model_path: Path) -> None:
    own = page("extending.md", MODEL=str(tiny_model_path))
    for package in ("models", "tasks", "flows", "ninefold"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, body in own.files.items():
        (folder / name).write_text(body)
    said = follow(own.commands, folder, **with_prefect() | {"PYTHONPATH": str(folder)})
    assert "own: what 12 queries bought" in said
    assert "own-longest: what 12 queries bought" in said
    assert "simulated oracle that prefers short responses" in said


@pytest.fixture(scope="module")
def written() -> str:
    """What `ninefold reference` writes, in a process that knows the shipped plugins alone and none of other tests."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "reference"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_reference_is_what_the_models_say(written: str) -> None:
    assert (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8") == written, (
        "`ninefold reference > docs/reference/configuration.md` writes it again"
    )


def test_every_field_says_what_it_is(written: str) -> None:
    silent = [line for line in written.splitlines() if re.fullmatch(r"\| `\w+` \|.*\|\s*\|", line)]
    assert silent == []
    described = [found[1] for found in re.finditer(r"^\| `\w+` \|.*\| ([^|]+) \|$", written, flags=re.MULTILINE)]
    fragments = [
        text
        for text in described
        if not text.startswith("see ") and not re.match(r"[A-Zγλβ].*\.$|\w, .*\.$|\w: .*\.$", text)
    ]
    assert fragments == [], "a description is a sentence that stands alone"


def test_links_between_the_pages_lead_somewhere() -> None:
    for source in (*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", source.read_text(encoding="utf-8")):
            assert (source.parent / target).exists(), f"{source.name}: {target}"


@pytest.mark.usefixtures("prefect_server")
def test_the_readme_s_python_runs(folder: Path, tiny_settings: dict[str, Any]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    experiments = folder / "deployments" / "experiments"
    experiments.mkdir(parents=True)
    (experiments / "quickstart.yaml").write_text(yaml.safe_dump(tiny_settings))
    (folder / "readme.py").write_text(block.replace('"labelling.queries": 64', '"labelling.queries": 8'))
    environment = with_prefect() | {"NINEFOLD_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    done = finished("readme", environment=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "budget     at most 8 queries" in done.stdout
    assert re.search(r"^Interval\(mean=0\.\d+, low=0\.\d+, high=[01]\.\d+\)$", done.stdout, flags=re.MULTILINE)
