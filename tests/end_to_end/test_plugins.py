"""Plugins of another package: installed, used in a run and a sweep, computed again when their version is raised."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.support.plugins import EXAMPLE, install
from tests.support.processes import finished, without_prefect


class Machine:
    """A place where packages are installed beside Ninefold's, and a home."""

    def __init__(self, folder: Path, tiny_settings: dict[str, Any]) -> None:
        self.folder, self.site = folder, folder / "site"
        self.environment = without_prefect() | {"NINEFOLD_HOME": str(folder / "home"), "PYTHONPATH": str(self.site)}
        labelling = tiny_settings["labelling"] | {"acquisition": {"kind": "my_lab/longest"}}
        labelling |= {"oracle": {"kind": "my_lab/brief"}, "queries": 5}
        self.file = folder / "own.yaml"
        self.file.write_text(
            yaml.safe_dump(tiny_settings | {"labelling": labelling, "gate": {"on_failure": "continue"}})
        )

    def ninefold(self, *arguments: str, status: int = 0) -> str:
        done = finished("flows.cli.main", *arguments, environment=self.environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def change(self, old: str, new: str) -> None:
        file = self.site / "my_lab" / "plugins.py"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def report(self, name: str = "tiny") -> Any:
        return json.loads((self.folder / "home" / "reports" / name / "report.json").read_text())

    def picks(self) -> list[str]:
        found = pd.read_parquet(self.folder / "home" / "reports" / "tiny" / "acquisition.parquet")
        return [str(one) for one in found.response_id]


@pytest.fixture
def machine(tmp_path: Path, tiny_settings: dict[str, Any]) -> Machine:
    made = Machine(tmp_path, tiny_settings)
    install(EXAMPLE, made.site)
    return made


@pytest.mark.slow
def test_an_installed_package_runs_and_a_raised_version_computes_again(machine: Machine) -> None:
    assert "my-lab-ninefold 0.1.0" in machine.ninefold("kinds", "acquisition")
    machine.ninefold("run", str(machine.file))
    first, picked = machine.report(), machine.picks()
    assert (first["strategy"], first["oracle_simulated"]) == ("my_lab/longest", True)

    machine.change("pool.tokens.astype(float)", "-pool.tokens.astype(float)")
    machine.ninefold("run", str(machine.file))
    assert machine.picks() == picked, "an edit alone buys nothing again"
    machine.change(
        "version: ClassVar[int] = 1  # raise it when the strategy",
        "version: ClassVar[int] = 2  # raise it when the strategy",
    )
    machine.ninefold("run", str(machine.file))
    assert machine.picks() != picked, "a raised version selects anew"
    assert machine.report()["queries_bought"] > 0

    sweep = machine.folder / "sweep.yaml"
    arms = {"mine": {}, "random": {"labelling.acquisition": {"kind": "random"}}}
    budget = {"presets": [], "max_micro_usd": 10_000_000}
    sweep.write_text(yaml.safe_dump({"name": "both", "base": "own.yaml", "arms": arms, "seeds": [0]} | budget))
    machine.ninefold("sweep", str(sweep))
    assert machine.report("both.mine.s0")["strategy"] == "my_lab/longest"


@pytest.mark.slow
def test_what_is_wrong_with_a_package_is_said_with_its_name(machine: Machine, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(EXAMPLE, other)
    (other / "my_lab").rename(other / "their_lab")
    settings = (other / "pyproject.toml").read_text().replace("my_lab", "their_lab").replace("my-lab", "their-lab")
    (other / "pyproject.toml").write_text(settings)
    install(other, machine.site)
    said = machine.ninefold("kinds", status=2)
    assert "kind 'my_lab/longest' is claimed by Longest of my-lab-ninefold 0.1.0 and by Longest of" in said
    assert "their-lab-ninefold 0.1.0: rename one" in said

    (machine.site / "their_lab" / "plugins.py").write_text("import nowhere_at_all\n")
    said = machine.ninefold("plan", str(machine.file), status=2)
    assert re.search(
        r"plugin module their_lab.plugins of their-lab-ninefold 0.1.0 cannot be imported .*nowhere_at_all", said
    )
    (machine.site / "their_lab" / "plugins.py").write_text("NINEFOLD_API = 99\n")
    assert "is for plugin API 99, and this is 1" in machine.ninefold("plan", str(machine.file), status=2)


def test_an_unknown_module_and_a_kind_without_its_package_are_named(tmp_path: Path, tiny_file: Path) -> None:
    (tmp_path / "mine.py").write_text(
        (EXAMPLE / "my_lab" / "plugins.py").read_text().replace("my_lab/longest", "longest")
    )
    place = {"NINEFOLD_HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path)}
    for named, said in (
        ("mine", "kind 'longest' is Longest's of mine: kinds of other packages are 'package/name'"),
        ("not_there", "the plugin module not_there of NINEFOLD_PLUGINS=not_there cannot be imported"),
    ):
        environment = without_prefect() | place | {"NINEFOLD_PLUGINS": named}
        done = finished("flows.cli.main", "plan", str(tiny_file), environment=environment)
        assert done.returncode == 2
        assert said in done.stderr
