"""`ninefold kinds` lists every plugin with where it comes from, and what it takes."""

import json
from importlib.metadata import version
from pathlib import Path

from tests.support.processes import ninefold, without_prefect


def kinds(*arguments: str, home: Path) -> tuple[int, str]:
    """Ask a process of its own, which knows no plugin of other tests."""
    done = ninefold("kinds", *arguments, home=home, environment=without_prefect() | {"COLUMNS": "160"})
    return done.returncode, done.stdout + done.stderr


def test_kinds_are_listed_with_their_origin_and_fields(tmp_path: Path) -> None:
    status, shown = kinds("acquisition", home=tmp_path)
    assert status == 0
    assert "random_pairs" in shown
    assert f"ninefold {version('ninefold')}" in shown
    found = json.loads(kinds("--json", home=tmp_path)[1])
    assert {"acquisition", "oracles", "evaluators"} <= set(found)
    assert all({"kind", "from", "version", "fields"} == set(row) for rows in found.values() for row in rows)


def test_an_extension_point_there_is_not_is_named_with_those_there_are(tmp_path: Path) -> None:
    status, said = kinds("strategies", home=tmp_path)
    assert status == 2
    assert "no extension point 'strategies': there are acquisition, pair_rules, oracles" in said
