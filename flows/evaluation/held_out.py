"""Evaluate the evaluator and the policy on held-out prompts, with a shuffled-label control."""

import math
from dataclasses import replace
from typing import NamedTuple

from flows.steps import stages as steps
from flows.steps.results import EvaluatorAgreement, PolicyPoint, RunArtifacts, RunResults
from flows.tracking.run import RunTracker
from tasks.engine.caching import StageResult
from tasks.engine.store import Ref
from tasks.evaluation.biases import assess_biases, reformat
from tasks.evaluation.held_out import Drift, PairwiseVerdicts, assess_evaluator, assess_policy, pair_answers
from tasks.evaluation.overoptimisation import assess_best_of, assess_point, best_of
from tasks.evaluator.score import Scored
from tasks.policy.generate import generate_sharded
from tasks.policy.logprobs import likelihood
from tasks.policy.policy_ref import Policy


class _Answers(NamedTuple):
    """A policy's held-out answers and what the oracle says of them."""

    policy: Policy
    responses: Ref
    labels: Ref


def assess(arm: RunTracker, artifacts: RunArtifacts) -> RunResults:
    """Return what is found of the rounds' evaluator and of M_2 against M_1."""
    config, evaluator = arm.experiment, artifacts.evaluator
    before, after = (_answers(arm, artifacts, policy) for policy in (artifacts.sft_policy, artifacts.policy))
    verdicts = _compared(arm, before, after)
    outcome = assess_policy(
        before.responses,
        after.responses,
        verdicts=verdicts,
        before_labels=before.labels,
        after_labels=after.labels,
        drift=_drift(arm, before, after),
    )
    consistency = math.nan if verdicts is None else verdicts.order_consistency
    found = RunResults(artifacts, before.responses, before.labels, None, outcome, consistency)
    if evaluator is None:
        return found
    return replace(
        found,
        agreement=_assess_evaluator(arm, evaluator, artifacts, before),
        best_of=_assess_best_of(arm, evaluator, artifacts, before) if config.evaluation.best_of else None,
        curve=_assess_curve(arm, evaluator, artifacts, [before, after]) if artifacts.checkpoints else (),
    )


def _answers(arm: RunTracker, artifacts: RunArtifacts, policy: Policy) -> _Answers:
    """Sample with the same random numbers for every policy: what differs is the policy."""
    config = arm.experiment
    responses = generate_sharded(
        policy,
        artifacts.prompts.held_out,
        config.generation,
        samples=config.evaluation.samples,
        seed=steps.seed(arm, 0, "evaluate"),
    ).ref
    labels = arm.measure(steps.annotate(arm, responses, None, arm.evaluation_left)).ref
    return _Answers(policy, responses, labels)


def _drift(arm: RunTracker, before: _Answers, after: _Answers) -> Drift:
    """Score both policies' answers: M_2 first, which has just written its own and is loaded."""
    base = before.policy.base
    by_second, by_first = _likelihoods(arm, before.policy, after)
    return Drift(
        after=by_second,
        after_by_first=by_first,
        after_by_base=_likelihood(arm, base, after),
        before_by_base=_likelihood(arm, base, before),
    )


def _likelihoods(arm: RunTracker, first: Policy, at: _Answers) -> tuple[Ref, Ref]:
    """Return the likelihoods of a policy's answers under itself and under M_1."""
    return _likelihood(arm, at.policy, at), _likelihood(arm, first, at)


def _likelihood(arm: RunTracker, policy: Policy, answers: _Answers) -> Ref:
    longest, own = arm.experiment.generation.max_new_tokens, policy == answers.policy
    return likelihood(answers.responses, policy, max_new_tokens=longest, own=own).ref


def _compared(arm: RunTracker, before: _Answers, after: _Answers) -> PairwiseVerdicts | None:
    """Return who wins by a pairwise oracle; None where scores decide."""
    judge = arm.experiment.evaluation.pairwise_judge
    if judge is None:
        return None
    both = pair_answers(before.responses, after.responses)
    if not both.picks.rows:
        return PairwiseVerdicts(labels=None)
    labels = arm.measure(steps.annotate(arm, both.responses, both.picks, arm.evaluation_left, by=judge))
    consistency = labels.facts.get("order_consistency", math.nan)
    return PairwiseVerdicts(labels=labels.ref, order_consistency=consistency)


def _scored(arm: RunTracker, evaluator: StageResult, artifacts: RunArtifacts, responses: Ref) -> Scored:
    return steps.score(arm, evaluator.ref, responses, _features(arm, artifacts, responses), artifacts.sft_policy)


def _features(arm: RunTracker, artifacts: RunArtifacts, responses: Ref) -> Ref | None:
    return steps.view_of(arm, responses, arm.experiment.evaluator.feature_view, artifacts.sft_policy)


def _assess_evaluator(
    arm: RunTracker, evaluator: StageResult, artifacts: RunArtifacts, before: _Answers
) -> EvaluatorAgreement:
    """Hold the evaluator against the oracle, beside one trained on shuffled labels where there are labels."""
    sft_policy, features, control = artifacts.sft_policy, _features(arm, artifacts, before.responses), None
    proxy = steps.score(arm, evaluator.ref, before.responses, features, sft_policy)
    if artifacts.trained_on:
        last = arm.experiment.iterations
        shuffled = steps.fit_evaluator(arm, artifacts.trained_on, artifacts.prompts, sft_policy, last, shuffle=True)
        control = steps.score(arm, shuffled.ref, before.responses, features, sft_policy, checked=False)
    calibration = None if artifacts.gate is None else artifacts.gate.calibration
    across = arm.experiment.evaluator.supports_pointwise  # else it has only compared, within prompts
    facts = assess_evaluator(before.responses, before.labels, proxy, control, calibration, across_prompts=across)
    varied = reformat(before.responses).ref
    listed = _scored(arm, evaluator, artifacts, varied) if varied.rows else None
    facts |= assess_biases(before.responses, before.labels, proxy, listed)
    place = {name: value for name, value in proxy.facts.items() if name == "position_bias"}
    return EvaluatorAgreement(proxy.ref, facts | place)


def _assess_best_of(
    arm: RunTracker, evaluator: StageResult, artifacts: RunArtifacts, before: _Answers
) -> dict[str, float]:
    """Return how the best of several answers of M_1, as the evaluator sees it, does against M_1: no policy is trained."""
    config, count = arm.experiment, arm.experiment.evaluation.best_of
    seed = steps.seed(arm, 0, "best of")  # other answers than those it is held against
    drawn = generate_sharded(
        artifacts.sft_policy, artifacts.prompts.held_out, config.generation, samples=count, seed=seed
    ).ref
    best = best_of(drawn, _scored(arm, evaluator, artifacts, drawn).ref).ref
    labels = arm.measure(steps.annotate(arm, best, None, arm.evaluation_left))
    return assess_best_of(before.responses, best, before_labels=before.labels, best_labels=labels.ref, count=count)


def _assess_curve(
    arm: RunTracker, evaluator: StageResult, artifacts: RunArtifacts, ends: list[_Answers]
) -> tuple[PolicyPoint, ...]:
    """Return what oracle and evaluator say of the policies from M_1 on to M_2."""
    passed = [ends[0], *(_answers(arm, artifacts, policy) for policy in artifacts.checkpoints), ends[1]]
    last, kept = arm.experiment.iterations, len(artifacts.checkpoints)  # those on the way are the last round's
    shares = [0.0, *((last - 1 + number / (kept + 1)) / last for number in range(1, kept + 1)), 1.0]
    return tuple(
        PolicyPoint(
            share,
            assess_point(
                at.responses,
                at.labels,
                _scored(arm, evaluator, artifacts, at.responses),
                likelihoods=None if at.policy == artifacts.sft_policy else _likelihoods(arm, artifacts.sft_policy, at),
            ),
        )
        for share, at in zip(shares, passed, strict=True)
    )
