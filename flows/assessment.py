"""Hold evaluator and policy against the expert on held-out prompts, a shuffled-label control beside them."""

from flows import steps
from flows.findings import Agreement, Findings, Rounds
from flows.tracking import Arm
from tasks.biases import assess_biases, reformat
from tasks.evaluate import assess_evaluator, assess_policy
from tasks.generate import generate
from tasks.store import Ref


def assess(arm: Arm, rounds: Rounds) -> Findings:
    """Return what is found of the rounds' evaluator and of M_2 against M_1."""
    x, first = arm.experiment, rounds.first
    before, after = (
        # the same random numbers for both policies: what differs is the policy
        generate(
            policy,
            rounds.prompts.held_out,
            x.generation,
            samples=x.evaluation.samples,
            seed=steps.seed(arm, 0, "evaluate"),
        )
        for policy in (first, rounds.policy)
    )
    before_labels = arm.measure(steps.asked(arm, before.ref, None, arm.evaluation_left))
    after_labels = arm.measure(steps.asked(arm, after.ref, None, arm.evaluation_left))
    agreement = _assess_evaluator(arm, rounds, before.ref, before_labels.ref)
    outcome = assess_policy(
        before.ref,
        after.ref,
        before_labels=before_labels.ref,
        after_labels=after_labels.ref,
        before_policy=first,
        after_policy=rounds.policy,
        max_new_tokens=x.generation.max_new_tokens,
    )
    return Findings(rounds, before.ref, before_labels.ref, agreement, outcome)


def _assess_evaluator(arm: Arm, rounds: Rounds, responses: Ref, labels: Ref) -> Agreement | None:
    """Hold the evaluator against the expert, beside one taught with shuffled labels where there are labels."""
    if rounds.evaluator is None:
        return None
    x, first = arm.experiment, rounds.first
    features = steps.view_of(arm, responses, x.evaluator.feature_view, first)
    proxy, control = steps.scored(arm, rounds.evaluator.ref, responses, features, first), None
    if rounds.taught:
        shuffled = steps.taught(arm, rounds.taught, rounds.prompts, first, x.dpo.rounds, shuffle=True)
        control = steps.scored(arm, shuffled.ref, responses, features, first)
    calibration = None if rounds.gate is None else rounds.gate.calibration
    facts = assess_evaluator(responses, labels, proxy, control, calibration)
    varied = reformat(responses).ref
    listed = steps.scored(
        arm, rounds.evaluator.ref, varied, steps.view_of(arm, varied, x.evaluator.feature_view, first), first
    )
    place = {name: value for name, value in proxy.facts.items() if name == "position_bias"}
    return Agreement(proxy.ref, facts | assess_biases(responses, labels, proxy, listed) | place)
