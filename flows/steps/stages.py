"""The steps of the algorithm: each calls a cached stage with the fields of the experiment that it depends on."""

from typing import NamedTuple

from flows.config.experiment import PolicyConfig
from flows.steps.human import wait_for_people
from flows.tracking.run import RunTracker
from models.acquisition.random import Random
from models.acquisition.random_pairs import RandomPairs
from models.core.money import Amount
from models.core.randomness import seed_of
from models.core.registry import digest_of
from models.embeddings.base import View
from models.evaluators.training_data import FitOptions
from models.metrics.selective import AtChance, Decision
from models.oracles.base import Oracle
from models.policies.resolve import locate
from tasks.data.demonstrations import off_policy, self_play
from tasks.data.prompts import PromptSets
from tasks.engine import dry_run
from tasks.engine.caching import StageResult
from tasks.engine.store import Ref
from tasks.evaluator.cross_fit import check_gate as check_gate_stage
from tasks.evaluator.cross_fit import cross_fit
from tasks.evaluator.pair import build_pairs as build_pairs_stage
from tasks.evaluator.pair import select_uncertain as select_uncertain_stage
from tasks.evaluator.score import Scored, score_sharded
from tasks.evaluator.train import fit_evaluator as fit_evaluator_stage
from tasks.labelling.acquire import acquire as acquire_stage
from tasks.labelling.annotate import AnnotationRequest, AnnotationResult, LabellingTerms, enqueue_for_humans
from tasks.labelling.annotate import annotate as annotate_stage
from tasks.labelling.batches import Batch
from tasks.policy.align import Aligned
from tasks.policy.align import align as align_stage
from tasks.policy.embed import embed_sharded
from tasks.policy.fine_tune import fine_tune as fine_tune_stage
from tasks.policy.generate import generate_sharded
from tasks.policy.logprobs import likelihood
from tasks.policy.policy_ref import Policy


class QueryPool(NamedTuple):
    """An iteration's responses, their vectors in the strategy's view and in the evaluator's, and log π_ref of each."""

    responses: Ref
    vectors: Ref | None
    features: Ref | None
    reference: Ref | None

    def batch(self, picks: Ref, labels: Ref) -> Batch:
        """Return what was bought of this pool in one round."""
        return Batch(picks=picks, responses=self.responses, labels=labels, vectors=self.vectors, features=self.features)


def base_policy(config: PolicyConfig) -> Policy:
    """Return M_0."""
    return Policy(model=config.model, weights=locate(config.model).digest, dtype=config.dtype, template=config.template)


def fine_tune(arm: RunTracker, base: Policy, prompts: PromptSets) -> Policy:
    """Return M_1: the base model trained on the demonstrations, or the base model itself where there are none."""
    if not prompts.demonstrations.rows:
        return base
    recipe = arm.experiment.policy.sft
    adapter = fine_tune_stage(base, prompts.demonstrations, recipe, seed=seed(arm, 0, "fine_tune"))
    return base.adapted(arm.log("fine_tune", adapter).ref)


def generate(
    arm: RunTracker, policy: Policy, prompts: Ref, iteration: int, *, samples: int | None = None
) -> StageResult:
    """Return the policy's responses to the prompts."""
    generation = arm.experiment.generation
    return generate_sharded(
        policy,
        prompts,
        generation,
        samples=samples or generation.samples,
        seed=seed(arm, iteration, "generate"),
        least_usable=generation.least_usable,
    )


def view_of(arm: RunTracker, responses: Ref, view: View | None, sft_policy: Policy) -> Ref | None:
    """Return the vectors of a view; always by M_1, so that rounds share one space."""
    if view is None:
        return None
    embedding = arm.experiment.embedding
    policy = sft_policy if embedding.needs_policy else None
    return embed_sharded(responses, embedding, view=view, rubric=arm.experiment.labelling.rubric, policy=policy)


def pool_of(arm: RunTracker, responses: Ref, sft_policy: Policy, previous_policy: Policy) -> QueryPool:
    """Return what there is to ask about; `before` is the policy before its last training."""
    config, log_reference = arm.experiment, None
    strategy, evaluator = (
        view_of(arm, responses, view, sft_policy)
        for view in (config.labelling.acquisition.needs.view, config.evaluator.feature_view)
    )
    if config.labelling.acquisition.needs.reference:
        log_reference = likelihood(responses, previous_policy, max_new_tokens=config.generation.max_new_tokens).ref
    return QueryPool(responses, strategy, evaluator, log_reference)


def queried_pool(
    arm: RunTracker, pool: QueryPool, prompts: PromptSets, sft_policy: Policy, previous_policy: Policy
) -> QueryPool:
    """Return the pool that the oracle is asked about: the policy's responses, or the demonstrations' own answers."""
    if arm.experiment.labelling.pool == "on_policy":
        return pool
    return pool_of(arm, off_policy(prompts.demonstrations).responses, sft_policy, previous_policy)


def acquire(
    arm: RunTracker,
    pool: QueryPool,
    evaluator: StageResult | None,
    *,
    sft_policy: Policy,
    history: tuple[Batch, ...],
    round_number: int,
) -> Ref:
    """Return what the strategy would ask the oracle about in this round."""
    labelling = arm.experiment.labelling
    strategy, members = labelling.acquisition, None
    compare = labelling.oracle.query_type == "pairwise"
    if strategy.needs.scores and evaluator is None:
        # a strategy that ranks by an evaluator starts from a uniform batch while there is none
        strategy = RandomPairs() if compare else Random()
    elif strategy.needs.scores and evaluator is not None:
        members = score(arm, evaluator.ref, pool.responses, pool.features, sft_policy).members
    return acquire_stage(
        strategy,
        pool.responses,
        vectors=pool.vectors,
        members=members,
        reference=pool.reference,
        oracle=labelling.oracle if strategy.needs.cost else None,
        money=arm.left.micro_usd if strategy.needs.cost else None,
        history=history,
        budget=arm.quota(round_number),
        seed=arm.experiment.seeds.selection,
        round_number=round_number,
        compare=compare,
    ).ref


def annotate(
    arm: RunTracker, responses: Ref, picks: Ref | None, caps: Amount, by: Oracle | None = None
) -> AnnotationResult:
    """Buy labels of the picks, or, to measure, of every response; `by` the oracle that labels unless it is another."""
    labelling = arm.experiment.labelling
    oracle = by or (arm.experiment.evaluation_oracle if picks is None else labelling.oracle)
    fingerprint = oracle.fingerprint()
    about = picks or responses
    account = digest_of([fingerprint, labelling.rubric.digest(), responses.sha256, about.sha256, about.rows, caps])
    request = AnnotationRequest(
        responses=responses,
        picks=picks,
        oracle=oracle,
        fingerprint=fingerprint,
        rubric=labelling.rubric,
        account=account,
        max_queries=about.rows or 0,
        max_micro_usd=caps.micro_usd,
        max_tokens=caps.tokens,
        reopened=arm.open_account(account),
    )
    if dry_run.current() is None:
        wait_for_people(lambda: enqueue_for_humans(request, arm.purses))
    terms = LabellingTerms(
        concurrency=labelling.concurrency,
        patience=labelling.patience,
        least_usable=labelling.least_usable,
        purses=arm.purses,
    )
    return annotate_stage(request, terms=terms)


def fit_evaluator(
    arm: RunTracker,
    history: tuple[Batch, ...],
    prompts: PromptSets,
    sft_policy: Policy,
    iteration: int,
    *,
    shuffle: bool = False,
) -> StageResult:
    """Return an evaluator trained on the history; by labels that say nothing, with `shuffle`."""
    config = arm.experiment
    trained = fit_evaluator_stage(
        config.evaluator,
        history,
        policy=sft_policy,
        rubric=config.labelling.rubric,
        options=_fit_options(arm, iteration, shuffle=shuffle),
        eft_examples=_eft_examples(arm, prompts),
    )
    return trained if shuffle else arm.log("fit_evaluator", trained)


def check_gate(
    arm: RunTracker, history: tuple[Batch, ...], prompts: PromptSets, sft_policy: Policy, iteration: int
) -> Decision | None:
    """Return the gate's decision; None where no label was bought. Raises AtChance if the evaluator is not to be believed."""
    if not history:
        return None
    config = arm.experiment
    left_out = cross_fit(
        config.evaluator,
        history,
        policy=sft_policy,
        rubric=config.labelling.rubric,
        options=_fit_options(arm, iteration),
        folds=config.gate.folds,
        eft_examples=_eft_examples(arm, prompts),
    )
    decision = check_gate_stage(left_out.ref, config.gate)
    arm.decide(decision)
    control, stops = config.labelling.shuffle_labels, config.gate.on_failure == "stop"
    if decision.verdict == "no better than chance" and stops and not control:  # a control is to be seen to the end
        raise AtChance(
            f"{decision.sentence} Nothing was labelled by it. Buy more labels, use another evaluator, or set "
            "gate.on_failure to continue: what has been bought is kept"
        )
    return decision


def score(
    arm: RunTracker,
    trained: Ref,
    responses: Ref,
    features: Ref | None,
    sft_policy: Policy,
    *,
    checked: bool = True,
) -> Scored:
    """Return the evaluator's scores of the responses; `checked` unless it is a control, which may know nothing."""
    return score_sharded(
        arm.experiment.evaluator,
        trained,
        responses,
        features=features,
        policy=sft_policy,
        rubric=arm.experiment.labelling.rubric,
        seed=seed(arm, 0, "proxy_label"),
        least_usable=arm.experiment.gate.least_usable if checked else 0.0,
    )


def select_uncertain(
    arm: RunTracker,
    responses: Ref,
    scores: Scored,
    history: tuple[Batch, ...],
    *,
    gate: Decision | None,
    iteration: int,
) -> Ref | None:
    """Return the pairs that the gate sends back to the oracle; None where there are none, or no money is left."""
    labelling, quota = arm.experiment.labelling, arm.relabel_quota(iteration)
    if gate is None or gate.least_gap == 0.0 or labelling.shuffle_labels:  # a control uses no true label
        return None
    penniless = labelling.max_micro_usd > 0 and arm.left.micro_usd <= 0  # an oracle may be free
    if quota <= 0 or penniless:
        return None
    picks = select_uncertain_stage(
        responses,
        scores.ref,
        history,
        least_gap=_least_gap(gate, scores),
        queries=quota,
        compare=labelling.oracle.query_type == "pairwise",
    ).ref
    return picks if picks.rows else None


def build_pairs(
    arm: RunTracker,
    responses: Ref,
    scores: Scored | None,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    prompts: PromptSets,
    iteration: int,
    gate: Decision | None,
) -> StageResult:
    """Return the preference pairs by whoever gives the feedback: the evaluator, the oracle, or the demonstrations."""
    if arm.experiment.feedback == "demonstrations":
        demonstrated = off_policy(prompts.demonstrations)
        own = generate(arm, policy, demonstrated.prompts, iteration, samples=1)
        return self_play(demonstrated.responses, own.ref)
    bought = () if arm.experiment.labelling.shuffle_labels else history
    if scores is None:
        return build_pairs_stage(responses, None, bought)
    return build_pairs_stage(responses, scores.ref, bought, least_gap=_least_gap(gate, scores))


def align(arm: RunTracker, policy: Policy, pairs: Ref, held: Ref | None, iteration: int) -> Aligned:
    """Return the policy's next adapter, trained on the pairs; in the last iteration with its intermediate checkpoints."""
    config = arm.experiment
    along = config.intermediate_checkpoints if iteration == config.iterations else 0
    return align_stage(policy, pairs, held, config.dpo, seed=seed(arm, iteration, "align"), along=along)


def seed(arm: RunTracker, iteration: int, stage: str) -> int:
    """Return the training seed of a stage in an iteration."""
    return seed_of(arm.experiment.seeds.training, iteration, stage)


def _fit_options(arm: RunTracker, iteration: int, *, shuffle: bool = False) -> FitOptions:
    labelling = arm.experiment.labelling
    return FitOptions(
        seed=seed(arm, iteration, "evaluator"),
        shuffle=shuffle or labelling.shuffle_labels,
        balance=labelling.pool == "balanced_off_policy",
    )


def _eft_examples(arm: RunTracker, prompts: PromptSets) -> Ref | None:
    return prompts.eft_examples if arm.experiment.evaluator.uses_eft_examples else None


def _least_gap(gate: Decision | None, scores: Scored) -> float:
    """Return the gate's smallest difference in units of the scores."""
    return 0.0 if gate is None else gate.least_gap * scores.facts["temperature"]
