"""The paper's algorithm (arXiv 2407.02119), top to bottom.

M_0 is the base model, M_1 the fine-tuned one, M_2 the aligned one. Each stage below is a cached task; what is paid for is
in the ledger.
"""

from typing import Annotated, Any, NamedTuple

from prefect import flow

from flows.config import or_file
from flows.experiment import Experiment, PolicyConfig
from flows.findings import Agreement, Findings, Rounds
from flows.report import write_report
from flows.tracking import Arm, arm_run
from flows.waiting import wait_for_people
from models.acquisition.uniform import Uniform
from models.acquisition.uniform_pairs import UniformPairs
from models.cost import Amount
from models.embedding import View
from models.plugins import digest_of
from models.policies.pretrained import locate
from models.randomness import seed_of
from tasks.acquire import acquire
from tasks.align import align, reference
from tasks.annotate import Bought, Purchase, annotate, ask_people
from tasks.caching import Product, restarting
from tasks.demonstrations import off_policy, self_play
from tasks.embed import embed
from tasks.evaluate import assess_evaluator, assess_policy
from tasks.fine_tune import fine_tune
from tasks.generate import generate
from tasks.history import Batch
from tasks.likelihood import likelihood
from tasks.pair import pair
from tasks.policy import Policy
from tasks.prompts import PromptSets, load_prompts
from tasks.proxy_label import Scored, proxy_label
from tasks.store import Ref
from tasks.train_evaluator import train_evaluator


@flow(name="proxy-reward", flow_run_name="{experiment.name}")
def proxy_reward(
    experiment: Annotated[Experiment, or_file(Experiment)], sweep: str = "", restart_from: str = ""
) -> dict[str, Any]:
    """Run one arm, of a sweep or alone, and return its report (also written to the reports folder and to MLflow).

    The experiment may be given as a file. What an earlier run has done comes from the cache, up to the stage `restart_from`
    if one is named.
    """
    x = experiment
    with arm_run(experiment, sweep) as arm, restarting(restart_from):
        base = base_policy(x.policy)  # M_0
        prompts = load_prompts(
            x.prompts,
            inputs=x.prompts.digest_inputs(),
            policy=base,
            max_prompt_tokens=x.policy.max_prompt_tokens,
        )
        first = _fine_tuned(arm, base, prompts)  # M_1
        before, policy = base, first
        history: tuple[Batch, ...] = ()
        evaluator = _evaluator(arm, history, first, 0) if x.dpo.feedback == "policy" else None
        responses, scored, pairs = None, None, None
        for number in arm.rounds:
            responses = arm.log("generate", _responses(arm, policy, prompts.pool, number)).ref
            pool = _pool(arm, responses, first, before)
            asked = pool if x.labelling.pool == "on_policy" else _seed_pool(arm, prompts, first, before)
            for turn in arm.turns(number):
                picks = _picks(arm, asked, evaluator, first=first, history=history, turn=turn)
                labels = arm.buy(_labels(arm, asked.responses, picks, arm.left))
                history += (asked.batch(picks, labels.ref),)
                evaluator = _evaluator(arm, history, first, number) if x.dpo.feedback == "proxy" else None
            if evaluator is not None:
                scored = arm.log("proxy_label", _scores(arm, evaluator.ref, responses, pool.features, first))
            pairs = arm.log(
                "pair", _pairs(arm, responses, scored, history, policy=policy, prompts=prompts, number=number)
            )
            held = reference(policy, pairs.ref).ref
            adapter = arm.log("align", align(policy, pairs.ref, held, x.dpo, seed=_seed(arm, number, "align")))
            before, policy = policy, policy.adapted(adapter.ref)  # M_2, and the reference of the next round
        rounds = Rounds(
            prompts=prompts,
            first=first,
            policy=policy,
            history=history,
            evaluator=evaluator,
            responses=responses,
            scores=scored,
            pairs=pairs,
        )
        return write_report(arm, _evaluate(arm, rounds))


class Pool(NamedTuple):
    """A round's responses, their vectors in the strategy's view and in the evaluator's, and log π_ref of each."""

    responses: Ref
    vectors: Ref | None
    features: Ref | None
    reference: Ref | None

    def batch(self, picks: Ref, labels: Ref) -> Batch:
        """Return what was bought of this pool in one turn."""
        return Batch(picks=picks, responses=self.responses, labels=labels, vectors=self.vectors, features=self.features)


def base_policy(config: PolicyConfig) -> Policy:
    """Return M_0."""
    return Policy(model=config.model, weights=locate(config.model).digest, dtype=config.dtype, template=config.template)


def _fine_tuned(arm: Arm, base: Policy, prompts: PromptSets) -> Policy:
    if not prompts.seed.rows:
        return base
    recipe = arm.experiment.policy.sft
    adapter = fine_tune(base, prompts.seed, recipe, seed=_seed(arm, 0, "fine_tune"))
    return base.adapted(arm.log("fine_tune", adapter).ref)


def _responses(arm: Arm, policy: Policy, prompts: Ref, round_number: int, *, samples: int | None = None) -> Product:
    generation, seed = arm.experiment.generation, _seed(arm, round_number, "generate")
    return generate(policy, prompts, generation, samples=samples or generation.samples, seed=seed)


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


def _views(arm: Arm, responses: Ref, first: Policy) -> tuple[Ref | None, Ref | None]:
    x = arm.experiment
    strategy, evaluator = x.labelling.acquisition.needs.view, x.evaluator.feature_view
    return _view(arm, responses, strategy, first), _view(arm, responses, evaluator, first)


def _pool(arm: Arm, responses: Ref, first: Policy, before: Policy) -> Pool:
    return Pool(responses, *_views(arm, responses, first), _reference(arm, responses, before))


def _seed_pool(arm: Arm, prompts: PromptSets, first: Policy, before: Policy) -> Pool:
    return _pool(arm, off_policy(prompts.seed).responses, first, before)


def _reference(arm: Arm, responses: Ref, before: Policy) -> Ref | None:
    """Return the log-probabilities under the policy before its last training, for strategies that ask for them."""
    if not arm.experiment.labelling.acquisition.needs.reference:
        return None
    return likelihood(responses, before, max_new_tokens=arm.experiment.generation.max_new_tokens).ref


def _picks(
    arm: Arm, pool: Pool, evaluator: Product | None, *, first: Policy, history: tuple[Batch, ...], turn: int
) -> Ref:
    labelling = arm.experiment.labelling
    strategy, members = labelling.acquisition, None
    compare = labelling.oracle.unit == "pair"
    if strategy.needs.scores and evaluator is None:
        # a strategy that ranks by an evaluator starts from a uniform batch while there is none
        strategy = UniformPairs() if compare else Uniform()
    elif strategy.needs.scores and evaluator is not None:
        members = _scores(arm, evaluator.ref, pool.responses, pool.features, first).members
    return acquire(
        strategy,
        pool.responses,
        vectors=pool.vectors,
        members=members,
        reference=pool.reference,
        oracle=labelling.oracle if strategy.needs.cost else None,
        money=arm.left.micro_usd if strategy.needs.cost else None,
        history=history,
        budget=arm.quota(turn),
        seed=arm.experiment.seeds.selection,
        turn=turn,
        compare=compare,
    ).ref


def _labels(arm: Arm, responses: Ref, picks: Ref | None, caps: Amount) -> Bought:
    """Buy labels of the picks, or, to measure, of every response."""
    labelling = arm.experiment.labelling
    oracle = arm.experiment.judge if picks is None else labelling.oracle
    fingerprint = oracle.fingerprint()
    asked = picks or responses
    purchase = Purchase(
        responses=responses,
        picks=picks,
        oracle=oracle,
        fingerprint=fingerprint,
        rubric=labelling.rubric,
        account=digest_of([fingerprint, labelling.rubric.digest(), responses.sha256, asked.sha256, asked.rows, caps]),
        max_queries=asked.rows or 0,
        max_micro_usd=caps.micro_usd,
        max_tokens=caps.tokens,
    )
    wait_for_people(lambda: ask_people(purchase))
    return annotate(purchase, workers=labelling.workers)


def _evaluator(
    arm: Arm, history: tuple[Batch, ...], first: Policy, round_number: int, *, shuffle: bool = False
) -> Product:
    labelling = arm.experiment.labelling
    trained = train_evaluator(
        arm.experiment.evaluator,
        history,
        policy=first,
        rubric=labelling.rubric,
        seed=_seed(arm, round_number, "evaluator"),
        shuffle=shuffle or labelling.shuffle_labels,
        balance=labelling.pool == "balanced_off_policy",
    )
    return trained if shuffle else arm.log("train_evaluator", trained)


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


def _pairs(
    arm: Arm,
    responses: Ref,
    scored: Scored | None,
    history: tuple[Batch, ...],
    *,
    policy: Policy,
    prompts: PromptSets,
    number: int,
) -> Product:
    """Return the preference pairs by whoever gives the feedback: the evaluator, the expert, or the demonstrations."""
    if arm.experiment.dpo.feedback == "demonstrations":
        demonstrated = off_policy(prompts.seed)
        own = _responses(arm, policy, demonstrated.prompts, number, samples=1)
        return self_play(demonstrated.responses, own.ref)
    expert = () if arm.experiment.labelling.shuffle_labels else history
    return pair(responses, None if scored is None else scored.ref, expert)


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
    before_labels = arm.measure(_labels(arm, before.ref, None, arm.evaluation_left))
    after_labels = arm.measure(_labels(arm, after.ref, None, arm.evaluation_left))
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
    features = _view(arm, responses, x.evaluator.feature_view, first)
    proxy, control = _scores(arm, rounds.evaluator.ref, responses, features, first), None
    if rounds.history:
        shuffled = _evaluator(arm, rounds.history, first, x.dpo.rounds, shuffle=True)
        control = _scores(arm, shuffled.ref, responses, features, first)
    return Agreement(proxy.ref, assess_evaluator(responses, labels, proxy, control))


def _seed(arm: Arm, round_number: int, stage: str) -> int:
    return seed_of(arm.experiment.seeds.training, round_number, stage)
