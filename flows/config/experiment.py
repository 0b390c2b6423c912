"""The parameters of an experiment: one frozen model per concern, validated once, at the edge."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from models.acquisition.base import Acquisition
from models.acquisition.pairwise import PairAcquisition
from models.acquisition.uniform import Uniform
from models.core.allowlist import FolderOrName
from models.core.money import NO_CAP, MicroUsd
from models.core.registry import Frozen, OneOf
from models.core.rubric import Rubric
from models.embeddings.base import Embedding
from models.embeddings.policy import PolicyEmbedding
from models.evaluators.base import Evaluator
from models.evaluators.generative import Generative
from models.generators.base import Generator
from models.generators.hf import Transformers
from models.metrics.selective import ANY_PAIR
from models.oracles.base import Oracle
from models.policies.chat_template import Template
from models.policies.dtypes import ChosenDtype
from models.sources.base import PromptSource
from models.training.dpo import DPO
from models.training.sft import SFT


class Seeds(Frozen):
    """`selection` decides what is bought; `training` decides sampling, SFT, the evaluator and DPO."""

    selection: NonNegativeInt = Field(0, description="what is bought")
    training: NonNegativeInt = Field(0, description="sampling, SFT, evaluator, DPO")


class PolicyConfig(Frozen):
    """The language model: packaged, a local directory, or a hub id `org/name@revision`."""

    model: Annotated[str, FolderOrName] = Field(
        description="packaged, a local directory, or a hub id `org/name@revision`"
    )
    template: Template = Field("chat", description="the tokenizer's chat template, or the texts as they are")
    dtype: ChosenDtype = Field(
        "auto",
        validate_default=True,
        description="of the weights; auto: bfloat16 where a GPU or the processor computes it",
    )
    max_prompt_tokens: PositiveInt = Field(512, description="longer prompts are set aside and named")
    sft: SFT = SFT()


class Labelling(Frozen):
    """What to ask, whom, how often, and what it may cost. Every cap is hard."""

    acquisition: Annotated[Acquisition, OneOf()] = Uniform()
    oracle: Annotated[Oracle, OneOf()]
    rubric: Rubric = Rubric()
    pool: Literal["on_policy", "off_policy", "balanced_off_policy"] = Field(
        "on_policy", description="what is asked about: M_1's responses, or the seed's own, raw or with levels balanced"
    )
    queries: NonNegativeInt = Field(description="oracle queries in all, over rounds and batches")
    max_micro_usd: MicroUsd = Field(description="micro-dollars in all, over rounds and batches")
    max_tokens: PositiveInt = Field(NO_CAP, description="tokens in all, for oracles billed by the token")
    batches: PositiveInt = Field(1, description="acquisition turns per round; the evaluator is refitted in between")
    workers: PositiveInt = Field(4, description="concurrent queries; does not change the result")
    shuffle_labels: bool = Field(False, description="the control arm: permute the labels before the evaluator learns")


class Evaluation(Frozen):
    """Held-out evaluation. Its queries are not the budget's: they measure, they train nothing."""

    samples: int = Field(2, ge=2, description="answers per held-out prompt and policy; pairs need two")
    versus: Annotated[Oracle, OneOf()] | None = Field(
        None, description="who compares M_2's answers with M_1's, in both orders; without, their scores decide who wins"
    )
    curve: NonNegativeInt = Field(
        0, description="policies on DPO's way that oracle and evaluator score too, where there is one"
    )
    best_of: NonNegativeInt = Field(0, description="answers of M_1 of which the evaluator picks one; 0: not measured")
    oracle: Annotated[Oracle, OneOf()] | None = Field(None, description="labelling.oracle if not given")
    max_micro_usd: MicroUsd = Field(description="micro-dollars that the evaluation's queries may cost")

    @model_validator(mode="after")
    def _versus_compares(self) -> "Evaluation":
        if self.versus is not None and self.versus.query_type != "pairwise":
            raise ValueError(
                f"evaluation.versus compares two answers, and {self.versus.label()!r} scores single ones: use "
                "a pairwise oracle, such as llm_pairs, or leave it out"
            )
        return self


class Experiment(Frozen):
    """One arm: the paper's algorithm with every choice made."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="of the run, its report and its exports")
    seeds: Seeds = Seeds()
    prompts: Annotated[PromptSource, OneOf()]
    policy: PolicyConfig
    generation: Annotated[Generator, OneOf()] = Transformers()
    embedding: Annotated[Embedding, OneOf()] = PolicyEmbedding()
    labelling: Labelling
    evaluator: Annotated[Evaluator, OneOf()] = Generative()
    dpo: DPO = DPO()
    evaluation: Evaluation

    @property
    def judge(self) -> Oracle:
        """The oracle of the evaluation."""
        return self.evaluation.oracle or self.labelling.oracle

    @property
    def curve(self) -> int:
        """How many policies on DPO's way are kept and scored: none where there is no evaluator to score them."""
        return self.evaluation.curve if self.dpo.feedback in ("proxy", "policy") else 0

    def answers(self, prompts: int) -> int:
        """Return how many answers to so many held-out prompts the evaluation's oracle scores, at most."""
        best = self.evaluation.best_of > 0 and self.dpo.feedback in ("proxy", "policy")
        return prompts * (self.evaluation.samples * (2 + self.curve) + best)

    @property
    def simulated(self) -> bool:
        """Whether any of the oracles is simulated."""
        versus = self.evaluation.versus
        return self.labelling.oracle.simulated or self.judge.simulated or (versus is not None and versus.simulated)

    @property
    def strategy(self) -> str:
        """What people call the arm: its strategy, and what is not the paper's about it."""
        feedback, labelling = self.dpo.feedback, self.labelling
        if feedback == "none":
            return "sft"
        named = [{"policy": "self_reward", "demonstrations": "spin"}.get(feedback, labelling.acquisition.label())]
        named += [labelling.pool] * (labelling.pool != "on_policy")
        named += ["direct"] * (feedback == "oracle") + ["shuffled"] * labelling.shuffle_labels
        named += [self.dpo.algorithm] * (self.dpo.algorithm != "dpo")
        return " ".join(named)

    @model_validator(mode="after")
    def _pairs_where_pairs_are_asked(self) -> "Experiment":
        oracle, strategy = self.labelling.oracle.label(), self.labelling.acquisition
        if self.judge.query_type == "pairwise":
            raise ValueError(
                f"the evaluation needs a pointwise oracle, and {self.judge.label()!r} compares: set evaluation.oracle"
            )
        if self.labelling.oracle.query_type == "pointwise":
            if self.dpo.feedback == "proxy" and not self.evaluator.supports_pointwise:
                raise ValueError(
                    f"{oracle!r} scores single answers, and evaluator {self.evaluator.label()!r} learns from comparisons: "
                    "use a pairwise oracle, such as comparing or llm_pairs, or the evaluator generative"
                )
            return self
        if not isinstance(strategy, PairAcquisition):
            raise ValueError(
                f"{oracle!r} compares pairs, and acquisition {strategy.label()!r} picks tuples: use a strategy over pairs, "
                "such as random_pairs or bald"
            )
        if not self.evaluator.supports_pairwise:
            raise ValueError(
                f"{oracle!r} compares pairs, and evaluator {self.evaluator.label()!r} learns from scores: use linear, "
                "generative_pairs, or reward_head with loss bradley_terry"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        turns, kept = self.dpo.rounds * self.labelling.batches, self.dpo.gate.queries
        if not self.dpo.asks:
            return self
        if self.labelling.queries - kept < turns:
            less = f", less {kept} kept by dpo.gate.queries," if kept else ""
            raise ValueError(
                f"labelling.queries={self.labelling.queries}{less} does not reach for {turns} turns "
                f"(dpo.rounds × labelling.batches): raise it to at least {turns + kept}"
            )
        if self.generation.samples < 2:
            raise ValueError("generation.samples must be at least 2: a preference needs two responses to a prompt")
        if self.labelling.acquisition.needs.scores and turns == 1:
            raise ValueError(
                f"acquisition {self.labelling.acquisition.label()!r} ranks by an evaluator, and with one "
                "turn there is none when it picks: set labelling.batches to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _eft_seed_from_somewhere(self) -> "Experiment":
        if self.evaluator.uses_eft_examples and not self.prompts.has_eft_seed:
            raise ValueError(
                f"evaluator.eft_seed={getattr(self.evaluator, 'eft_seed', True)} mixes in examples that "
                f"prompts {self.prompts.label()!r} do not have: set prompts.eft_seed"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_something_to_do(self) -> "Experiment":
        gate, feedback = self.dpo.gate, self.dpo.feedback
        if feedback != "proxy" and (gate.queries or gate.threshold > ANY_PAIR):
            raise ValueError(
                f"dpo.gate holds an evaluator against the oracle, and dpo.feedback={feedback} trains none: leave out "
                "dpo.gate.queries and dpo.gate.threshold"
            )
        if gate.queries and gate.threshold == ANY_PAIR:
            raise ValueError(
                f"dpo.gate.queries={gate.queries} is kept for pairs under dpo.gate.threshold, and none is under "
                f"{ANY_PAIR}: raise dpo.gate.threshold"
            )
        return self

    @model_validator(mode="after")
    def _feedback_from_someone(self) -> "Experiment":
        feedback, labelling = self.dpo.feedback, self.labelling
        if not self.dpo.asks and labelling.queries:
            raise ValueError(
                f"dpo.feedback={feedback} asks the oracle nothing, and labelling.queries={labelling.queries}: set it to 0"
            )
        if feedback == "policy" and not self.evaluator.supports_zero_shot:
            raise ValueError(
                f"dpo.feedback=policy needs an evaluator that judges zero-shot, and {self.evaluator.label()!r} does not: "
                "set evaluator.kind to generative"
            )
        if feedback != "proxy" and labelling.shuffle_labels:
            raise ValueError(f"dpo.feedback={feedback} trains no evaluator: labelling.shuffle_labels shuffles nothing")
        if feedback == "oracle" and labelling.acquisition.needs.scores:
            raise ValueError(
                f"dpo.feedback=oracle trains no evaluator, and acquisition {labelling.acquisition.label()!r} ranks by one: "
                "use random or random_pairs"
            )
        if labelling.pool != "on_policy" and (feedback != "proxy" or labelling.oracle.query_type == "pairwise"):
            raise ValueError(
                f"labelling.pool={labelling.pool} has one response to a prompt, which trains an evaluator by its score: "
                "it needs dpo.feedback=proxy and a pointwise oracle"
            )
        return self
