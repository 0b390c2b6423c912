"""The paper's algorithm (arXiv 2407.02119), top to bottom.

M_0 is the base model, M_1 the fine-tuned one, M_2 the aligned one. Each stage below is a cached task; what is paid for is
in the ledger.
"""

from typing import Annotated

from prefect import flow

from flows.config.experiment import Experiment
from flows.config.loading import OrFile
from flows.evaluation.held_out import assess
from flows.reporting.run import write_report
from flows.reporting.schema import RunReport
from flows.runtime.workers import heartbeat
from flows.steps import stages as steps
from flows.steps.results import RunArtifacts
from flows.tracking.run import RunTracker, arm_run
from models.ledger.purses import Purse
from tasks.data.prompts import load_prompts
from tasks.engine.caching import force_from
from tasks.labelling.batches import Batch
from tasks.policy.align import reference
from tasks.policy.policy_ref import Policy


@flow(name="proxy-reward", flow_run_name="{experiment.name}")
def proxy_reward(
    experiment: Annotated[Experiment, OrFile()], sweep: str = "", restart_from: str = "", purse: Purse | None = None
) -> RunReport:
    """Run one arm, of a sweep or alone, and return its report (also written to the reports folder and to MLflow).

    The experiment may be given as a file. What an earlier run has done comes from the cache, up to the stage `restart_from`
    if one is named. What it buys is charged to the `purse` of its sweep too. Raises AtChance where the gate stops the run.
    """
    with heartbeat(), arm_run(experiment, sweep, purse) as arm, force_from(restart_from):
        return write_report(arm, assess(arm, train_policy(arm)))


def train_policy(arm: RunTracker) -> RunArtifacts:
    """Train M_1, buy labels, train the evaluator, and align M_2 on the pairs that it labels, once per iteration."""
    config = arm.experiment
    base = steps.base_policy(config.policy)  # M_0
    prompts = load_prompts(
        config.prompts,
        inputs=config.prompts.digest_inputs(),
        policy=base,
        max_prompt_tokens=config.policy.max_prompt_tokens,
    )
    sft_policy = steps.fine_tune(arm, base, prompts)  # M_1
    previous_policy, policy = base, sft_policy
    history: tuple[Batch, ...] = ()
    trained_on: tuple[Batch, ...] = ()
    checkpoints: tuple[Policy, ...] = ()
    evaluator, responses, scores, gate, pairs = None, None, None, None, None
    if config.feedback == "policy":
        evaluator = steps.fit_evaluator(arm, history, prompts, sft_policy, 0)
    for iteration in arm.iterations:
        responses = arm.log("generate", steps.generate(arm, policy, prompts.pool, iteration)).ref
        pool = steps.pool_of(arm, responses, sft_policy, previous_policy)
        queried = steps.queried_pool(arm, pool, prompts, sft_policy, previous_policy)
        for number in arm.rounds(iteration):
            picks = steps.acquire(arm, queried, evaluator, sft_policy=sft_policy, history=history, round_number=number)
            labels = arm.buy(steps.annotate(arm, queried.responses, picks, arm.left))
            history += (queried.batch(picks, labels.ref),)
            trained_on = history
            if config.feedback == "proxy":
                evaluator = steps.fit_evaluator(arm, history, prompts, sft_policy, iteration)
        if evaluator is not None:
            gate = steps.check_gate(arm, trained_on, prompts, sft_policy, iteration)
            scores = arm.log("score", steps.score(arm, evaluator.ref, responses, pool.features, sft_policy))
            uncertain = steps.select_uncertain(arm, responses, scores, history, gate=gate, iteration=iteration)
            if uncertain is not None:
                labels = arm.record_relabelling(steps.annotate(arm, responses, uncertain, arm.left))
                history += (pool.batch(uncertain, labels.ref),)
        built = steps.build_pairs(
            arm, responses, scores, history, policy=policy, prompts=prompts, iteration=iteration, gate=gate
        )
        pairs = arm.log("build_pairs", built)
        reference_logps = reference(policy, pairs.ref, responses).ref if config.dpo.algorithm == "dpo" else None
        adapter = arm.log("align", steps.align(arm, policy, pairs.ref, reference_logps, iteration))
        checkpoints = tuple(policy.adapted(passed) for passed in adapter.along)
        previous_policy, policy = policy, policy.adapted(adapter.ref)  # M_2, the next iteration's reference
    return RunArtifacts(
        prompts=prompts,
        sft_policy=sft_policy,
        policy=policy,
        checkpoints=checkpoints,
        history=history,
        trained_on=trained_on,
        evaluator=evaluator,
        gate=gate,
        responses=responses,
        scores=scores,
        pairs=pairs,
    )
