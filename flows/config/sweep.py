"""Schema of a sweep file, and its expansion into arms: presets and named changes, a grid, seeds."""

import itertools
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, NonNegativeInt

from flows.config.experiment import Experiment
from flows.config.loading import read, set_field, validated
from flows.config.paths import FieldsOf
from flows.config.presets import ALL, PRESETS
from models.core.errors import ConfigError
from models.core.money import MicroUsd
from models.core.registry import Frozen

Changes = dict[str, Any]


class Sweep(Frozen):
    """Named arms and presets, each a set of changes to the `base` experiment, crossed with a grid and with seeds."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,39}$", description="Name of the sweep; the names of its runs begin with it."
    )
    base: Path = Field(description="The experiment file that arms change, relative to this file.")
    presets: tuple[str, ...] = Field((), description="Arms by the paper's names.")
    arms: dict[str, Annotated[Changes, FieldsOf(Experiment)]] = Field(
        {}, description="More arms: by name, the fields that each changes and their values."
    )
    grid: Annotated[dict[str, tuple[Any, ...]], FieldsOf(Experiment)] = Field(
        {}, description="Fields and their values; every combination is run for every arm."
    )
    seeds: tuple[NonNegativeInt, ...] = Field(
        (0,), min_length=1, description="Seeds of selection, and of training too unless training_seeds are given."
    )
    training_seeds: tuple[NonNegativeInt, ...] = Field(
        (), description="Seeds of training, crossed with `seeds`, so that the variance of the two can be told apart."
    )
    exclude: tuple[Changes, ...] = Field(
        (), description="Combinations to leave out, by `arm`, `seed`, `training_seed` or fields of the grid."
    )
    max_micro_usd: MicroUsd = Field(
        description="Most micro-dollars for all arms together, evaluation included. A hard cap."
    )


class SweepArm(NamedTuple):
    """One run of a sweep: which arm, what of the grid, which seeds of selection and of training."""

    arm: str
    point: Changes
    seed: int
    training_seed: int
    experiment: Experiment


class Expanded(NamedTuple):
    """The arms of a sweep in order, and, for those that ask for the same experiment as an earlier one, which that is."""

    arms: tuple[SweepArm, ...]
    merged: dict[str, str]


def expand(sweep: Sweep) -> Expanded:
    """Return every arm, validated; raise ConfigError naming the arm and the field.

    Arms that come to the same experiment are one, under the first one's name. Arms go on where the gate would stop a run by
    itself, unless they or the base say otherwise: what is left out for its outcome makes the comparison of the others wrong.
    """
    base, arms = read(Experiment, sweep.base), _arms(sweep)
    found: dict[str, SweepArm] = {}
    merged: dict[str, str] = {}
    titles: set[str] = set()
    points = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    seeds = list(itertools.product(sweep.seeds, sweep.training_seeds)) or [(seed, seed) for seed in sweep.seeds]
    for (name, changes), point, (seed, training) in itertools.product(arms.items(), points, seeds):
        known = {"arm": name, "seed": seed, "training_seed": training, **point}
        if any(_excluded(rule, known, sweep) for rule in sweep.exclude):
            continue
        # what the arm itself sets does not vary with the grid
        varied = {field: value for field, value in point.items() if field not in changes}
        title = _title(sweep, name, varied, seed, training)
        if title in titles:
            continue
        titles.add(title)
        fields = {**varied, **changes, "name": title, "seeds.selection": seed, "seeds.training": training}
        experiment = _experiment(base, fields, f"sweep {sweep.name}, arm {name}", sweep.max_micro_usd)
        identity = experiment.model_copy(update={"name": "x"}).digest()
        if identity in found:
            merged[title] = found[identity].experiment.name
        else:
            found[identity] = SweepArm(name, varied, seed, training, experiment)
    if not found:
        raise ConfigError(f"sweep {sweep.name} has no arm left: every combination is excluded")
    return Expanded(tuple(found.values()), merged)


def _arms(sweep: Sweep) -> dict[str, Changes]:
    """Return the named arms; raise ConfigError for none, an unknown preset, or a name that is taken."""
    if unknown := [name for name in sweep.presets if name not in PRESETS]:
        raise ConfigError(f"sweep {sweep.name}: presets {unknown} are none of {', '.join(PRESETS)}")
    if taken := set(sweep.presets) & set(sweep.arms):
        raise ConfigError(f"sweep {sweep.name}: {sorted(taken)} are presets and arms: give the arms other names")
    arms = {**{name: PRESETS[name] for name in sweep.presets}, **sweep.arms}
    if not arms:
        raise ConfigError(f"sweep {sweep.name} names no arm: list presets ({', '.join(PRESETS)}) or arms")
    return arms


def _experiment(base: Changes, fields: Changes, where: str, max_micro_usd: MicroUsd) -> Experiment:
    """Return the base with other fields; raise ConfigError that says where they come from."""
    settings, everything = deepcopy(base), fields.get("labelling.queries") == ALL
    try:
        for field, value in fields.items():
            all_of_it = max_micro_usd if field.endswith("max_micro_usd") else 1  # 1 query until the pool is known
            set_field(settings, field, all_of_it if value == ALL else value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if isinstance(gate := settings.get("gate", {}), dict):  # anything else is refused below
        settings["gate"] = {"on_failure": "continue", **gate}
    experiment = validated(Experiment, settings, where)
    if everything:
        per_prompt = experiment.generation.samples // (2 if experiment.labelling.oracle.query_type == "pairwise" else 1)
        queries = len(experiment.prompts.load().pool) * per_prompt * experiment.iterations
        set_field(settings, "labelling.queries", queries)
        experiment = validated(Experiment, settings, where)
    return experiment


def _excluded(rule: Changes, known: Changes, sweep: Sweep) -> bool:
    if unknown := rule.keys() - known.keys():
        raise ConfigError(f"sweep {sweep.name}: exclude names {sorted(unknown)}: it may name {', '.join(known)}")
    return all(known[name] == value for name, value in rule.items())


def _title(sweep: Sweep, arm: str, point: Changes, seed: int, training: int) -> str:
    parts = [sweep.name, arm, *(f"{field.rpartition('.')[2]}-{value}" for field, value in point.items())]
    crossed = f"t{training}" if sweep.training_seeds else ""
    return ".".join([*(str(part).lower().replace("_", "-") for part in parts), f"s{seed}{crossed}"])
