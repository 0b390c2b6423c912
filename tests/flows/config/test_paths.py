"""Paths in a parameter file are relative to that file, wherever the command is started."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.experiment import Experiment
from flows.config.loading import load
from flows.config.paths import rooted
from flows.config.study import LabelEfficiency
from flows.config.sweep import Sweep, expand
from flows.evaluation.reward_bench import RewardBenchConfig
from flows.planning.run import plan

ROOT = Path(__file__).parents[3]


@pytest.fixture
def apart(tmp_path: Path, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment and its prompts, and a working directory that is another."""
    folder, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    (folder / "data").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "data" / "pool.txt").write_text("one\ntwo\nthree\n")
    (folder / "held.txt").write_text("four\nfive\n")
    tiny_settings["prompts"] = {"kind": "files", "pool": "data/pool.txt", "held_out": "./held.txt"}
    tiny_settings["labelling"] |= {"queries": 4}
    (folder / "quick.yaml").write_text(yaml.safe_dump(tiny_settings))
    sweep = {"name": "small", "base": "quick.yaml", "presets": ["random"], "max_micro_usd": 100_000_000}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    monkeypatch.chdir(elsewhere)
    return folder


def change(file: Path, **fields: Any) -> Path:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | fields))
    return file


def test_prompts_beside_an_experiment_are_found_from_anywhere(apart: Path, home: Path) -> None:
    there = load(Experiment, apart / "quick.yaml")
    assert [p.text for p in there.prompts.load().pool] == ["one", "two", "three"]
    assert plan(there).lines()


def test_where_an_experiment_lies_is_no_part_of_what_it_is(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = load(Experiment, apart / "quick.yaml").prompts
    monkeypatch.chdir(apart)
    here = load(Experiment, Path("quick.yaml")).prompts
    assert here.model_dump()["pool"] == Path("data/pool.txt")
    assert there.digest_inputs() == here.digest_inputs()


def test_overrides_are_relative_to_the_working_directory(apart: Path) -> None:
    Path("other.txt").write_text("six\n")
    found = load(Experiment, apart / "quick.yaml", ["prompts.pool=other.txt"])
    assert [p.text for p in found.prompts.load().pool] == ["six"]
    with pytest.raises(FileNotFoundError, match="prompt file data/pool.txt does not exist"):
        load(Experiment, apart / "quick.yaml", ["prompts.pool=data/pool.txt"]).prompts.load()


def test_a_file_that_is_missing_is_named_where_it_was_looked_for(apart: Path) -> None:
    (apart / "held.txt").unlink()
    with pytest.raises(FileNotFoundError, match=f"prompt file {apart}/held.txt does not exist"):
        load(Experiment, apart / "quick.yaml").prompts.load()


def test_the_base_of_a_sweep_is_beside_it_and_its_prompts_beside_the_base(apart: Path) -> None:
    assert [
        p.text for arm in expand(load(Sweep, apart / "sweep.yaml")).arms for p in arm.experiment.prompts.load().pool
    ]
    (apart / "sweeps").mkdir()
    moved = change(apart / "sweep.yaml", base="../quick.yaml").rename(apart / "sweeps" / "sweep.yaml")
    (arm,) = expand(load(Sweep, moved)).arms
    assert len(arm.experiment.prompts.load().pool) == 3
    with pytest.raises(ValueError, match=f"experiment file {apart}/sweeps/none.yaml does not exist"):
        expand(load(Sweep, change(moved, base="none.yaml")))
    Path("sweep-base.yaml").write_text((apart / "quick.yaml").read_text())
    with pytest.raises(FileNotFoundError, match="prompt file data/pool.txt does not exist"):
        expand(load(Sweep, moved, ["base=sweep-base.yaml"])).arms[0].experiment.prompts.load()


def test_what_arms_and_grids_change_is_relative_to_the_sweep(apart: Path) -> None:
    (apart / "sweeps").mkdir()
    for name in "abc":
        (apart / "sweeps" / f"{name}.txt").write_text(f"{name}\n")
    settings = {
        "base": "../quick.yaml",
        "presets": [],
        "arms": {
            "one": {"prompts.pool": "a.txt"},
            "all": {"labelling": {"oracle": {"kind": "replay", "path": "c.csv"}}},
        },
        "grid": {"prompts.held_out": ["b.txt", "c.txt"], "labelling.queries": [2, 4]},
    }
    found = load(Sweep, change(apart / "sweep.yaml", **settings).rename(apart / "sweeps" / "s.yaml"))
    assert found.arms["one"] == {"prompts.pool": str(apart / "sweeps" / "a.txt")}
    assert found.arms["all"]["labelling"]["oracle"]["path"] == str(apart / "sweeps" / "c.csv")
    assert found.grid["prompts.held_out"] == tuple(str(apart / "sweeps" / f"{name}.txt") for name in "bc")
    assert found.grid["labelling.queries"] == (2, 4)


@pytest.mark.parametrize(
    ("cls", "settings", "expected"),
    [
        (Experiment, {"policy": {"model": "./model"}}, {"policy": {"model": "at/model"}}),
        (Experiment, {"policy": {"model": "model"}}, {"policy": {"model": "at/model"}}),
        (Experiment, {"policy": {"model": "org/name@main"}}, {"policy": {"model": "org/name@main"}}),
        (Experiment, {"policy": {"model": "./none"}}, {"policy": {"model": "./at/./none"}}),
        (Experiment, {"policy": {"model": "/model"}}, {"policy": {"model": "/model"}}),
        (
            Experiment,
            {"prompts": {"kind": "movie_reviews", "pool": 5}},
            {"prompts": {"kind": "movie_reviews", "pool": 5}},
        ),
        (
            Experiment,
            {"prompts": {"kind": "files", "pool": "~/p.txt"}},
            {"prompts": {"kind": "files", "pool": "~/p.txt"}},
        ),
        (
            Experiment,
            {"prompts": {"kind": "hub", "pool": {"dataset": "model", "prompt": "model", "rows": 3}}},
            {"prompts": {"kind": "hub", "pool": {"dataset": "at/model", "prompt": "model", "rows": 3}}},
        ),
        (
            Experiment,
            {"labelling": {"oracle": {"kind": "noisy", "inner": {"kind": "replay", "path": "t.csv"}}}},
            {"labelling": {"oracle": {"kind": "noisy", "inner": {"kind": "replay", "path": "at/t.csv"}}}},
        ),
        (Experiment, {"labelling": {"oracle": {"path": "t.csv"}}}, {"labelling": {"oracle": {"path": "at/t.csv"}}}),
        (Experiment, {"labelling": "replay", "nothing": "x"}, {"labelling": "replay", "nothing": "x"}),
        (LabelEfficiency, {"labels": {"path": "t.parquet"}}, {"labels": {"path": "at/t.parquet"}}),
        (RewardBenchConfig, {"pairs": None}, {"pairs": None}),
        (RewardBenchConfig, {"pairs": "p.json"}, {"pairs": "at/p.json"}),
    ],
)
def test_the_folder_comes_before_what_stands_where_paths_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: Any, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("at", "model").mkdir(parents=True)
    assert rooted(settings, cls, Path("at")) == expected


@pytest.mark.parametrize("name", ["quickstart", "paper"])
def test_the_sweeps_that_come_along_name_their_base(name: str, apart: Path) -> None:
    assert load(Sweep, ROOT / "deployments" / "sweeps" / f"{name}.yaml").base.is_file()
