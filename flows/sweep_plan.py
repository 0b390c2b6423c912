"""Plan a sweep: its arms, the stages that they share, and whether the budget suffices.

What is shared is not said here: the algorithm is run dry for each arm, and calls with the same cache key are one.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flows.config.sweep import Expanded, Sweep, expand
from flows.evaluation.held_out import assess
from flows.planning.purses import check_left, sweep_purse
from flows.planning.run import START_SECONDS, Plan, plan
from flows.proxy_reward import train_policy
from flows.tracking.run import F, RunTracker
from models.core.errors import ConfigError
from models.core.money import dollars
from models.metrics.selective import Decision
from tasks.data.prompts import PromptSets
from tasks.engine.dry_run import StageCall, dry_run, stand_in
from tasks.engine.store import Ref
from tasks.labelling.annotate import AnnotationRequest
from tasks.policy.align import Aligned

_SHOWN = 12
_EVALUATE = "evaluate"  # the plan's step for all that comes after the training


class _DryArm(RunTracker):
    """An arm that logs nowhere."""

    def log(self, stage: str, product: F) -> F:
        self.facts[stage] = product.facts
        return product

    def decide(self, decision: Decision) -> None:
        pass

    def open_account(self, account: str) -> int:
        return 0


class Calls(NamedTuple):
    """What an arm would call, in order: stages up to M_2, and those of the evaluation."""

    training: list[StageCall]
    evaluation: list[StageCall]


def calls_of(one: Plan) -> Calls:
    """Return the stages that an arm calls, by running the algorithm dry. Without demonstrations nothing is fine-tuned."""

    def loaded(sets: PromptSets, _: Mapping[str, Any]) -> PromptSets:
        counted = sets.demonstrations.model_copy(update={"rows": one.demonstrations})
        return sets.model_copy(update={"demonstrations": counted})

    def aligned(made: Aligned, given: Mapping[str, Any]) -> Aligned:
        passed = tuple(stand_in(Ref, f"{made.ref.sha256} {number}") for number in range(given["along"]))
        return made.model_copy(update={"along": passed})

    arm = _DryArm(one.experiment, "", [], paid_before=False)
    with dry_run({"load_prompts": loaded, "align": aligned}) as dry:
        artifacts = train_policy(arm)
        trained = len(dry.calls)
        assess(arm, artifacts)
    return Calls(dry.calls[:trained], dry.calls[trained:])


class Part(NamedTuple):
    """What one call is expected to take: its part of what the arm's plan has for the whole step."""

    stage: str
    key: str
    seconds: float
    queries: float  # of the arm's budget
    micro_usd: float
    most: float  # micro-dollars, if every call is at its ceiling
    paid: float  # of the micro-dollars expected, those of oracles that are paid
    evaluates: bool


def parts_of(one: Plan, calls: Calls) -> list[Part]:
    """Return what each call of an arm is expected to take; together it is what the arm's plan says."""
    steps = {stage: step for step in one.steps for stage in step.stages}
    whole = Counter(steps[call.stage].stage for call in calls.training if call.stage in steps)
    purchases = sum(call.stage == "annotate" for call in calls.training)
    asked = Counter(_asked(call) for call in calls.evaluation if call.stage == "annotate")
    judges = {judge.oracle.digest(): judge for judge in one.judges}
    labels_paid = one.experiment.labelling.oracle.costs_money
    found = []
    for call in calls.training:
        step, buys = steps.get(call.stage), call.stage == "annotate"
        seconds = step.seconds / whole[step.stage] if step else 0.0
        whole_budget = one.queries, one.micro_usd, one.asking.micro_usd.high, one.micro_usd * labels_paid
        queries, price, most, paid = (amount / purchases if buys else 0.0 for amount in whole_budget)
        found.append(Part(call.stage, call.key, seconds, queries, price, most, paid, evaluates=False))
    for call in calls.evaluation:
        price, most, paid = 0.0, 0.0, 0.0
        if call.stage == "annotate":
            judge, times = judges[_asked(call)], asked[_asked(call)]
            price, most = judge.micro_usd / times, judge.most / times
            paid = price * judge.oracle.costs_money
        seconds = steps[_EVALUATE].seconds / len(calls.evaluation)
        found.append(Part(call.stage, call.key, seconds, 0.0, price, most, paid, evaluates=True))
    return found


def _asked(call: StageCall) -> str:
    request: AnnotationRequest = call.arguments["request"]
    return request.oracle.digest()


class Sharing(NamedTuple):
    """How many times the arms call a stage, and how many of these calls are left when equal ones are made once."""

    calls: int
    distinct: int


@dataclass(frozen=True)
class SweepPlan:
    """Every arm's plan, and the sums after sharing. Picks differ, so that labels shared by chance come on top."""

    sweep: Sweep
    expanded: Expanded
    plans: tuple[Plan, ...]
    queries: int
    micro_usd: int
    most_micro_usd: int
    left: tuple[str, ...]  # of the sweep's purse and the lab's, in words
    alone_micro_usd: int
    seconds: float
    alone_seconds: float
    stages: dict[str, Sharing]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        arms = self.expanded.arms
        names = [arm.experiment.name for arm in arms]
        shown = names if len(names) <= _SHOWN else [*names[: _SHOWN - 1], f"… and {len(names) - _SHOWN + 1} more"]
        timed = dict.fromkeys(stage for one in self.plans for step in one.steps for stage in step.stages)
        known = [(stage, self.stages[stage]) for stage in timed if stage in self.stages]
        return [
            f"sweep      {self.sweep.name}: {len(arms)} arms on {self.sweep.base}",
            *[f"  {name}" for name in shown],
            *[f"  {title} is the same experiment as {first}: merged" for title, first in self.expanded.merged.items()],
            f"queries    at most {self.queries} after sharing, {sum(p.queries for p in self.plans)} if each arm ran alone",
            "; ".join([self._money(), *self.left]),
            f"time       about {self.seconds / 60:.0f} min after sharing, {self.alone_seconds / 60:.0f} min alone",
            "stages     " + ", ".join(f"{stage} {found.distinct} of {found.calls}" for stage, found in known),
        ]

    def _money(self) -> str:
        return (
            f"money      expected {dollars(self.micro_usd)}, evaluation included, alone {dollars(self.alone_micro_usd)}, "
            f"at most {dollars(self.most_micro_usd)}, cap {dollars(self.sweep.max_micro_usd)}"
        )


def plan_sweep(sweep: Sweep) -> SweepPlan:
    """Expand and check every arm, and refuse a sweep over its budget, or the lab's, with the arithmetic.

    Raises ConfigError or FileNotFoundError naming the arm, before anything runs.
    """
    expanded = expand(sweep)
    plans = []
    for arm in expanded.arms:
        try:
            plans.append(plan(arm.experiment, in_sweep=True))
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"sweep {sweep.name}, arm {arm.arm}: {error}") from error
    every = [part for one in plans for part in parts_of(one, calls_of(one))]
    once = list({part.key: part for part in reversed(every)}.values())  # of equal calls the first arm's
    bought, judged = (
        [part for part in once if part.micro_usd and part.evaluates == evaluates] for evaluates in (False, True)
    )
    buying, judging = (math.ceil(sum(part.micro_usd for part in parts)) for parts in (bought, judged))
    if buying + judging > sweep.max_micro_usd:
        raise ConfigError(
            f"sweep {sweep.name}: {len(bought)} purchases, {dollars(buying)} at most, and {len(judged)} evaluations of a "
            f"policy's answers, {dollars(judging)} at most, come to {dollars(buying + judging)}, and max_micro_usd allows "
            f"{dollars(sweep.max_micro_usd)}: raise it or leave arms out"
        )
    calls, distinct = (Counter(part.stage for part in parts) for parts in (every, once))
    return SweepPlan(
        sweep=sweep,
        expanded=expanded,
        plans=tuple(plans),
        queries=math.ceil(sum(part.queries for part in once)),
        micro_usd=buying + judging,
        most_micro_usd=min(math.ceil(sum(part.most for part in once)), sweep.max_micro_usd),
        left=check_left(sweep_purse(sweep), math.ceil(sum(part.paid for part in once))),
        alone_micro_usd=sum(one.micro_usd + one.evaluation_micro_usd for one in plans),
        seconds=sum(part.seconds for part in once) + START_SECONDS,
        alone_seconds=sum(one.seconds for one in plans),
        stages={stage: Sharing(count, distinct[stage]) for stage, count in calls.items()},
    )
