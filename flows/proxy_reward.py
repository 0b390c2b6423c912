"""The paper's algorithm (arXiv 2407.02119), top to bottom.

M_0 is the base model, M_1 the fine-tuned one, M_2 the aligned one. Each stage below is a cached task; what is paid for is
in the ledger.
"""

from typing import Any

from prefect import flow

from flows.experiment import Experiment, PolicyConfig
from flows.report import Findings, Rounds, write_report
from flows.tracking import Arm, arm_run
from models.acquisition.uniform import Uniform
from models.embedding import View
from models.plugins import digest_of
from models.policies.pretrained import locate
from models.randomness import seed_of
from tasks.acquire import acquire
from tasks.align import align
from tasks.annotate import annotate
from tasks.caching import Product
from tasks.embed import embed
from tasks.evaluate import assess_evaluator, assess_policy
from tasks.fine_tune import fine_tune
from tasks.generate import generate
from tasks.history import Batch
from tasks.pair import pair
from tasks.policy import Policy
from tasks.prompts import PromptSets, load_prompts
from tasks.proxy_label import Scored, proxy_label
from tasks.store import Ref
from tasks.train_evaluator import train_evaluator


@flow(name="proxy-reward", flow_run_name="{experiment.name}")
def proxy_reward(experiment: Experiment) -> dict[str, Any]:
    """Run one arm and return its report (also written to the reports folder and to MLflow)."""
    x, labelling = experiment, experiment.labelling
    with arm_run(experiment) as arm:
        base = base_policy(x.policy)  # M_0
        prompts = load_prompts(
            x.prompts,
            inputs=x.prompts.digest_inputs(),
            policy=base,
            max_prompt_tokens=x.policy.max_prompt_tokens,
        )
        first = policy = _fine_tuned(arm, base, prompts)  # M_1
        history: tuple[Batch, ...] = ()
        evaluator: Product | None = None
        strategy = labelling.acquisition
        for round_number in range(1, x.dpo.rounds + 1):
            pool = arm.log("generate", _responses(arm, policy, prompts.pool, round_number))
            vectors = _view(arm, pool.ref, strategy.vector_view, first)
            features = _view(arm, pool.ref, x.evaluator.feature_view, first)
            for turn in range(labelling.batches * (round_number - 1), labelling.batches * round_number):
                members = None
                if strategy.needs_scores and evaluator is not None:
                    members = _scores(arm, evaluator.ref, pool.ref, features, first).members
                picks = acquire(
                    # a strategy that ranks by an evaluator starts from a uniform batch while there is none
                    Uniform() if strategy.needs_scores and members is None else strategy,
                    pool.ref,
                    vectors=vectors,
                    members=members,
                    history=history,
                    budget=arm.quota(turn),
                    seed=x.seeds.selection,
                    turn=turn,
                )
                labels = arm.buy(_labels(arm, pool.ref, picks.ref, arm.money_left))
                history += (Batch(responses=pool.ref, labels=labels.ref, vectors=vectors, features=features),)
                evaluator = trained = arm.log("train_evaluator", _evaluator(arm, history, first, round_number))
            scored = arm.log("proxy_label", _scores(arm, trained.ref, pool.ref, features, first))
            pairs = arm.log("pair", pair(pool.ref, scored.ref, () if labelling.shuffle_labels else history))
            adapter = arm.log("align", align(policy, pairs.ref, x.dpo, seed=_seed(arm, round_number, "align")))
            policy = policy.adapted(adapter.ref)  # M_2, and the reference of the next round
        rounds = Rounds(prompts, first, policy, history, trained.ref, scored.ref, pairs.ref)
        return write_report(arm, _evaluate(arm, rounds))


def base_policy(config: PolicyConfig) -> Policy:
    """Return M_0."""
    return Policy(model=config.model, weights=locate(config.model).digest, dtype=config.dtype, template=config.template)


def _fine_tuned(arm: Arm, base: Policy, prompts: PromptSets) -> Policy:
    if not prompts.seed.rows:
        return base
    recipe = arm.experiment.policy.sft
    adapter = fine_tune(base, prompts.seed, recipe, seed=_seed(arm, 0, "fine_tune"))
    return base.adapted(arm.log("fine_tune", adapter).ref)


def _responses(arm: Arm, policy: Policy, prompts: Ref, round_number: int) -> Product:
    generation = arm.experiment.generation
    return generate(policy, prompts, generation, samples=generation.samples, seed=_seed(arm, round_number, "generate"))


def _view(arm: Arm, responses: Ref, view: View | None, first: Policy) -> Ref | None:
    """Return the vectors of a view; always by M_1, so that rounds share one space."""
    if view is None:
        return None
    embedding = arm.experiment.embedding
    policy = first if embedding.needs_policy else None
    encoder = embedding.digest_inputs()
    return embed(
        responses, embedding, view=view, encoder=encoder, rubric=arm.experiment.labelling.rubric, policy=policy
    ).ref


def _labels(arm: Arm, responses: Ref, picks: Ref | None, max_micro_usd: int) -> Product:
    labelling = arm.experiment.labelling
    fingerprint = labelling.oracle.fingerprint()
    asked = picks or responses
    return annotate(
        responses,
        picks,
        labelling.oracle,
        fingerprint=fingerprint,
        rubric=labelling.rubric,
        account=digest_of(
            [fingerprint, labelling.rubric.digest(), responses.sha256, asked.sha256, asked.rows, max_micro_usd]
        ),
        max_queries=asked.rows or 0,
        max_micro_usd=max_micro_usd,
        workers=labelling.workers,
    )


def _evaluator(
    arm: Arm, history: tuple[Batch, ...], first: Policy, round_number: int, *, shuffle: bool = False
) -> Product:
    return train_evaluator(
        arm.experiment.evaluator,
        history,
        policy=first,
        rubric=arm.experiment.labelling.rubric,
        seed=_seed(arm, round_number, "evaluator"),
        shuffle=shuffle or arm.experiment.labelling.shuffle_labels,
    )


def _scores(arm: Arm, trained: Ref, responses: Ref, features: Ref | None, first: Policy) -> Scored:
    return proxy_label(
        arm.experiment.evaluator,
        trained,
        responses,
        features=features,
        policy=first,
        rubric=arm.experiment.labelling.rubric,
        seed=_seed(arm, 0, "proxy_label"),
    )


def _evaluate(arm: Arm, rounds: Rounds) -> Findings:
    """Hold evaluator and policy against the expert on held-out prompts, a shuffled-label control beside them."""
    x, first = arm.experiment, rounds.first
    before, after = (
        # the same random numbers for both policies: what differs is the policy
        generate(
            policy, rounds.prompts.held_out, x.generation, samples=x.evaluation.samples, seed=_seed(arm, 0, "evaluate")
        )
        for policy in (first, rounds.policy)
    )
    before_labels = arm.measure(_labels(arm, before.ref, None, arm.evaluation_money_left))
    after_labels = arm.measure(_labels(arm, after.ref, None, arm.evaluation_money_left))
    control = _evaluator(arm, rounds.history, first, x.dpo.rounds, shuffle=True)
    features = _view(arm, before.ref, x.evaluator.feature_view, first)
    proxy, shuffled = (
        _scores(arm, trained, before.ref, features, first) for trained in (rounds.evaluator, control.ref)
    )
    agreement = assess_evaluator(before.ref, before_labels.ref, proxy.ref, shuffled.ref)
    outcome = assess_policy(
        before.ref,
        after.ref,
        before_labels=before_labels.ref,
        after_labels=after_labels.ref,
        before_policy=first,
        after_policy=rounds.policy,
        max_new_tokens=x.generation.max_new_tokens,
    )
    return Findings(
        rounds=rounds,
        held_out=before.ref,
        held_out_labels=before_labels.ref,
        held_out_scores=proxy.ref,
        agreement=agreement,
        outcome=outcome,
    )


def _seed(arm: Arm, round_number: int, stage: str) -> int:
    return seed_of(arm.experiment.seeds.training, round_number, stage)
