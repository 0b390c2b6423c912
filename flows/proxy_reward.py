"""The paper's algorithm (arXiv 2407.02119), top to bottom.

M_0 is the base model, M_1 the fine-tuned one, M_2 the aligned one. Each stage below is a cached task; what is paid for is
in the ledger.
"""

from typing import Annotated, Any

from prefect import flow

from flows.config.experiment import Experiment
from flows.config.loading import or_file
from flows.evaluation.held_out import assess
from flows.reporting.run import write_report
from flows.runtime.workers import living
from flows.steps import stages as steps
from flows.steps.results import RunArtifacts
from flows.tracking.run import arm_run
from tasks.data.prompts import load_prompts
from tasks.engine.caching import force_from
from tasks.labelling.batches import Batch
from tasks.policy.align import reference
from tasks.policy.policy_ref import Policy


@flow(name="proxy-reward", flow_run_name="{experiment.name}")
def proxy_reward(
    experiment: Annotated[Experiment, or_file(Experiment)], sweep: str = "", restart_from: str = ""
) -> dict[str, Any]:
    """Run one arm, of a sweep or alone, and return its report (also written to the reports folder and to MLflow).

    The experiment may be given as a file. What an earlier run has done comes from the cache, up to the stage `restart_from`
    if one is named. Raises AtChance where the gate stops the run.
    """
    x = experiment
    with living(), arm_run(experiment, sweep) as arm, force_from(restart_from):
        base = steps.base_policy(x.policy)  # M_0
        prompts = load_prompts(
            x.prompts,
            inputs=x.prompts.digest_inputs(),
            policy=base,
            max_prompt_tokens=x.policy.max_prompt_tokens,
        )
        first = steps.fine_tune(arm, base, prompts)  # M_1
        before, policy = base, first
        history: tuple[Batch, ...] = ()
        trained_on = history
        evaluator = steps.fit_evaluator(arm, history, prompts, first, 0) if x.dpo.feedback == "policy" else None
        responses, scored, pairs, gate = None, None, None, None
        along: tuple[Policy, ...] = ()
        for number in arm.rounds:
            responses = arm.log("generate", steps.generate(arm, policy, prompts.pool, number)).ref
            pool = steps.pool_of(arm, responses, first, before)
            asked = pool if x.labelling.pool == "on_policy" else steps.seed_pool(arm, prompts, first, before)
            for turn in arm.turns(number):
                picks = steps.acquire(arm, asked, evaluator, first=first, history=history, turn=turn)
                labels = arm.buy(steps.annotate(arm, asked.responses, picks, arm.left))
                history += (asked.batch(picks, labels.ref),)
                trained_on = history
                evaluator = (
                    steps.fit_evaluator(arm, trained_on, prompts, first, number) if x.dpo.feedback == "proxy" else None
                )
            if evaluator is not None:
                gate = steps.check_gate(arm, trained_on, prompts, first, number)
                scored = arm.log("score", steps.score(arm, evaluator.ref, responses, pool.features, first))
                if select_uncertain := steps.select_uncertain(
                    arm, responses, scored, history, gate=gate, number=number
                ):
                    labels = arm.record_relabelling(steps.annotate(arm, responses, select_uncertain, arm.left))
                    history += (pool.batch(select_uncertain, labels.ref),)
            made = steps.build_pairs(
                arm, responses, scored, history, policy=policy, prompts=prompts, number=number, gate=gate
            )
            pairs = arm.log("build_pairs", made)
            held = reference(policy, pairs.ref, responses).ref if x.dpo.algorithm == "dpo" else None
            adapter = arm.log("align", steps.align(arm, policy, pairs.ref, held, number))
            along = tuple(policy.adapted(passed) for passed in adapter.along)
            before, policy = policy, policy.adapted(adapter.ref)  # M_2, the next round's reference
        rounds = RunArtifacts(
            prompts=prompts,
            first=first,
            policy=policy,
            along=along,
            history=history,
            trained_on=trained_on,
            evaluator=evaluator,
            gate=gate,
            responses=responses,
            scores=scored,
            pairs=pairs,
        )
        return write_report(arm, assess(arm, rounds))
