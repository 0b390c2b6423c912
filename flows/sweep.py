"""A sweep: many arms as one file, each a whole experiment, sharing every stage and every label that they have in common."""

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from flows.config import read, set_field, validated
from flows.experiment import Experiment
from flows.presets import PRESETS
from models.cost import MicroUsd
from models.plugins import Frozen

Changes = dict[str, Any]


class Sweep(Frozen):
    """Named arms and presets, each a set of changes to the `base` experiment, crossed with a grid and with seeds."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$")
    base: Path = Field(description="an experiment file, relative to the working directory")
    presets: tuple[str, ...] = Field((), description="arms by the paper's names")
    arms: dict[str, Changes] = Field({}, description="more arms: by name, fields and their values")
    grid: dict[str, tuple[Any, ...]] = Field({}, description="fields and their values, every combination for every arm")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="of selection and of training, paired")
    exclude: tuple[Changes, ...] = Field(
        (), description="combinations to leave out: `arm`, `seed`, or fields of the grid"
    )
    max_micro_usd: MicroUsd = Field(description="micro-dollars for all arms together, evaluation included")


class Arm(NamedTuple):
    """One run of a sweep: which arm, what of the grid, which seed."""

    arm: str
    point: Changes
    seed: int
    experiment: Experiment


class Expanded(NamedTuple):
    """The arms of a sweep in order, and, for those that ask for the same experiment as an earlier one, which that is."""

    arms: tuple[Arm, ...]
    merged: dict[str, str]


def expand(sweep: Sweep) -> Expanded:
    """Return every arm, validated; raise ValueError naming the arm and the field.

    Arms that come to the same experiment are one, under the first one's name.
    """
    base, arms = read(sweep.base), _arms(sweep)
    found: dict[str, Arm] = {}
    merged: dict[str, str] = {}
    points = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    for (name, changes), point, seed in itertools.product(arms.items(), points, sweep.seeds):
        if any(_excluded(rule, name, point, seed, sweep) for rule in sweep.exclude):
            continue
        title = _title(sweep, name, point, seed)
        settings = deepcopy(base)
        try:
            for field, value in {**point, **changes, "seeds.selection": seed, "seeds.training": seed}.items():
                set_field(settings, field, value)
        except ValueError as error:
            raise ValueError(f"sweep {sweep.name}, arm {name}: {error}") from error
        settings["name"] = title
        experiment = validated(Experiment, settings, f"sweep {sweep.name}, arm {name}")
        identity = experiment.model_copy(update={"name": "x"}).digest()
        if identity in found:
            merged[title] = found[identity].experiment.name
        else:
            found[identity] = Arm(name, point, seed, experiment)
    if not found:
        raise ValueError(f"sweep {sweep.name} has no arm left: every combination is excluded")
    return Expanded(tuple(found.values()), merged)


def _arms(sweep: Sweep) -> dict[str, Changes]:
    """Return the named arms; raise ValueError for none, an unknown preset, or a name that is taken."""
    if unknown := [name for name in sweep.presets if name not in PRESETS]:
        raise ValueError(f"sweep {sweep.name}: presets {unknown} are none of {', '.join(PRESETS)}")
    if taken := set(sweep.presets) & set(sweep.arms):
        raise ValueError(f"sweep {sweep.name}: {sorted(taken)} are presets and arms: give the arms other names")
    arms = {**{name: PRESETS[name] for name in sweep.presets}, **sweep.arms}
    if not arms:
        raise ValueError(f"sweep {sweep.name} names no arm: list presets ({', '.join(PRESETS)}) or arms")
    return arms


def _excluded(rule: Changes, arm: str, point: Changes, seed: int, sweep: Sweep) -> bool:
    known = {"arm": arm, "seed": seed, **point}
    if unknown := rule.keys() - known.keys():
        raise ValueError(f"sweep {sweep.name}: exclude names {sorted(unknown)}: it may name {', '.join(known)}")
    return all(known[name] == value for name, value in rule.items())


def _title(sweep: Sweep, arm: str, point: Changes, seed: int) -> str:
    parts = [sweep.name, arm, *(f"{field.rpartition('.')[2]}-{value}" for field, value in point.items())]
    return ".".join([*(str(part).lower().replace("_", "-") for part in parts), f"s{seed}"])
