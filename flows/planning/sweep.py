"""Plan a sweep: its arms, the stages that they share, and whether the budget suffices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.config.experiment import Experiment
from flows.config.sweep import Expanded, Sweep, expand
from flows.planning.run import Plan, plan, views_of
from models.core.errors import ConfigError
from models.core.money import dollars
from models.core.registry import digest_of

_SHOWN = 12


def _until(*parts: Callable[[Experiment], Any]) -> Callable[[Experiment], list[str]]:
    return lambda x: [digest_of([part(x) for part in parts])]


def _model(x: Experiment) -> object:
    return [x.prompts.digest_inputs(), x.prompts.digest(), x.policy.digest(), x.seeds.training]


def _pool(x: Experiment) -> object:
    # from the second round on the pool is written by a policy that every choice has had a part in
    later = (
        [x.labelling.digest(), x.evaluator.digest(), x.dpo.digest(), x.seeds.selection] if x.iterations > 1 else None
    )
    return [x.generation.digest(), later]


def _picks(x: Experiment) -> object:
    pool = "on_policy" if x.labelling.pool == "on_policy" else "off_policy"  # balanced afterwards
    labelling = x.labelling.model_copy(update={"shuffle_labels": False, "concurrency": 1, "pool": pool})
    turns = x.iterations * x.labelling.rounds
    learns = _evaluator(x) if turns > 1 else None
    return [labelling.digest(), x.seeds.selection, learns]


def _evaluator(x: Experiment) -> object:
    return [x.evaluator.digest(), x.labelling.shuffle_labels, x.labelling.pool, x.feedback]


def _embedded(x: Experiment) -> list[str]:
    """Return a key for each view of the pool that the strategy or the evaluator reads: none, one or two."""
    pool = [_model(x), _pool(x), x.embedding.digest(), x.labelling.rubric.digest()]
    return [digest_of([*pool, view]) for view in views_of(x)]


# Which choices a step depends on, as keys: arms that agree in one share it. The steps are those of flows/planning/run.py.
_SHARED: dict[str, Callable[[Experiment], list[str]]] = {
    "start": lambda _: [""],
    "fine_tune": _until(_model),
    "generate": _until(_model, _pool),
    "embed": _embedded,
    "acquire, annotate": _until(_model, _pool, lambda x: x.embedding.digest(), _picks),
    "fit_evaluator, score": _until(_model, _pool, lambda x: x.embedding.digest(), _picks, _evaluator),
    "align": _until(
        lambda x: x.model_copy(update={"name": "x", "evaluation": None}).digest(), lambda x: x.intermediate_checkpoints
    ),
    "evaluate": _until(lambda x: x.model_copy(update={"name": "x"}).digest()),
}


@dataclass(frozen=True)
class SweepPlan:
    """Every arm's plan, and the sums after sharing. Picks differ, so that labels shared by chance come on top."""

    sweep: Sweep
    expanded: Expanded
    plans: tuple[Plan, ...]
    queries: int
    micro_usd: int
    alone_micro_usd: int
    seconds: float
    alone_seconds: float
    shared: dict[str, int]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        arms = self.expanded.arms
        names = [arm.experiment.name for arm in arms]
        shown = names if len(names) <= _SHOWN else [*names[: _SHOWN - 1], f"… and {len(names) - _SHOWN + 1} more"]
        return [
            f"sweep      {self.sweep.name}: {len(arms)} arms on {self.sweep.base}",
            *[f"  {name}" for name in shown],
            *[f"  {title} is the same experiment as {first}: merged" for title, first in self.expanded.merged.items()],
            f"queries    at most {self.queries} after sharing, {sum(p.queries for p in self.plans)} if each arm ran alone",
            f"money      expected {dollars(self.micro_usd)}, evaluation included; alone {dollars(self.alone_micro_usd)}; "
            f"the budget allows {dollars(self.sweep.max_micro_usd)}",
            f"time       about {self.seconds / 60:.0f} min after sharing, {self.alone_seconds / 60:.0f} min alone",
            "stages     " + ", ".join(f"{name} × {count}" for name, count in self.shared.items() if name != "start"),
        ]


def plan_sweep(sweep: Sweep) -> SweepPlan:
    """Expand and check every arm, and refuse a sweep over its budget with the arithmetic.

    Raises ConfigError or FileNotFoundError naming the arm, before anything runs.
    """
    expanded = expand(sweep)
    plans = []
    for arm in expanded.arms:
        try:
            plans.append(plan(arm.experiment))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"sweep {sweep.name}, arm {arm.arm}: {error}") from error
    groups: dict[str, dict[str, Plan]] = {name: {} for name in _SHARED}
    for one in plans:
        for name, keys in _SHARED.items():
            for key in keys(one.experiment):
                groups[name].setdefault(key, one)
    bought, judged = groups["acquire, annotate"].values(), groups["evaluate"].values()
    micro_usd = sum(one.micro_usd for one in bought) + sum(one.evaluation_micro_usd for one in judged)
    if micro_usd > sweep.max_micro_usd:
        raise ConfigError(
            f"sweep {sweep.name}: {len(bought)} purchases at {dollars(max(one.micro_usd for one in bought))} at most and "
            f"{len(judged)} evaluations at {dollars(max(one.evaluation_micro_usd for one in judged))} at most come to "
            f"{dollars(micro_usd)}, and max_micro_usd allows {dollars(sweep.max_micro_usd)}: raise it or leave arms out"
        )
    return SweepPlan(
        sweep=sweep,
        expanded=expanded,
        plans=tuple(plans),
        queries=sum(one.queries for one in bought),
        micro_usd=micro_usd,
        alone_micro_usd=sum(one.micro_usd + one.evaluation_micro_usd for one in plans),
        seconds=sum(_step(one, name) for name, found in groups.items() for one in found.values()),
        alone_seconds=sum(one.seconds for one in plans),
        shared={name: len(found) for name, found in groups.items()},
    )


def _step(one: Plan, name: str) -> float:
    """Return the seconds of one of the parts that a plan's step has."""
    parts = max(len(_SHARED[name](one.experiment)), 1)
    return sum(step.seconds for step in one.steps if step.stage == name) / parts
