"""Schema of an experiment file: frozen pydantic models, validated once."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from models.acquisition.base import Acquisition
from models.acquisition.pair_rules.base import PairRule
from models.acquisition.pairwise import PairAcquisition
from models.acquisition.random import Random
from models.core.allowlist import FolderOrName
from models.core.errors import ConfigError
from models.core.money import NO_CAP, MicroUsd
from models.core.registry import Frozen, OneOf, Plugin
from models.core.rubric import Rubric
from models.core.usable import least_usable
from models.embeddings.base import Embedding
from models.embeddings.policy import PolicyEmbedding
from models.evaluators.base import Evaluator
from models.evaluators.generative import Generative
from models.generators.base import Generator
from models.generators.hf import Transformers
from models.labelling.retry import PATIENCE
from models.metrics.selective import ANY_PAIR, Gate
from models.oracles.base import Oracle
from models.policies.chat_template import Template
from models.policies.dtypes import ChosenDtype
from models.sources.base import PromptSource
from models.training.dpo import DPO
from models.training.sft import SFT

EXTENSION_POINTS: dict[str, type[Plugin]] = {
    "acquisition": Acquisition,
    "pair_rules": PairRule,
    "oracles": Oracle,
    "evaluators": Evaluator,
    "generators": Generator,
    "embeddings": Embedding,
    "sources": PromptSource,
}
Feedback = Literal["proxy", "oracle", "policy", "demonstrations", "none"]


class Seeds(Frozen):
    """`selection` decides what is bought; `training` decides sampling, SFT, the evaluator and DPO."""

    selection: NonNegativeInt = Field(0, description="Seed of acquisition: it decides what is bought.")
    training: NonNegativeInt = Field(0, description="Seed of everything else: sampling, SFT, evaluator, DPO.")


class PolicyConfig(Frozen):
    """The language model: packaged, a local directory, or a hub id `org/name@revision`."""

    model: Annotated[str, FolderOrName] = Field(
        description="The base model: packaged, a local directory, or a hub id `org/name@revision`."
    )
    template: Template = Field(
        "chat", description="How prompt and response become tokens: by the tokenizer's chat template, or as plain text."
    )
    dtype: ChosenDtype = Field(
        "auto",
        validate_default=True,
        description="Type of the weights. `auto` is bfloat16 where a GPU or the processor computes in it, else float32.",
    )
    max_prompt_tokens: PositiveInt = Field(
        512, description="Longest prompt, in tokens; longer ones are set aside and named in the report."
    )
    sft: SFT = SFT()


class Labelling(Frozen):
    """What to ask, whom, how often, and what it may cost. Every cap is hard."""

    acquisition: Annotated[Acquisition, OneOf()] = Random()
    oracle: Annotated[Oracle, OneOf()]
    rubric: Rubric = Rubric()
    pool: Literal["on_policy", "off_policy", "balanced_off_policy"] = Field(
        "on_policy",
        description="What the oracle is asked about: M_1's responses, or the demonstrations', raw or with levels balanced.",
    )
    queries: NonNegativeInt = Field(description="Most oracle queries, over all rounds and iterations. A hard cap.")
    max_micro_usd: MicroUsd = Field(
        description="Most micro-dollars for labels, over all rounds and iterations. A hard cap."
    )
    max_tokens: PositiveInt = Field(
        NO_CAP, description="Most tokens for labels, for oracles billed by the token. A hard cap; no limit by default."
    )
    rounds: PositiveInt = Field(
        1, description="Acquisition rounds in an iteration; the evaluator is fitted again after each."
    )
    concurrency: PositiveInt = Field(
        4,
        description="Most queries in flight at once; fewer while the server takes fewer. It does not change the result.",
    )
    patience: PositiveFloat = Field(
        PATIENCE,
        description="Seconds without an answer, of the oracle or the ledger, before labelling stops. It changes no result.",
    )
    least_usable: float = least_usable("the oracle's replies that hold a verdict")
    shuffle_labels: bool = Field(
        False, description="Whether labels are permuted before the evaluator is fitted: the control arm."
    )


class Evaluation(Frozen):
    """Held-out evaluation. Its queries are not the budget's: they measure, they train nothing."""

    samples: int = Field(2, ge=2, description="Answers that each policy gives to a held-out prompt; pairs need two.")
    pairwise_judge: Annotated[Oracle, OneOf()] | None = Field(
        None,
        description="A pairwise oracle that compares both policies' answers, in both orders; else scores decide.",
    )
    intermediate_checkpoints: NonNegativeInt = Field(
        0, description="Policies between M_1 and M_2 that oracle and evaluator score too; none by default."
    )
    best_of: NonNegativeInt = Field(
        0, description="Answers of M_1 of which the evaluator picks the best; 0 measures nothing."
    )
    oracle: Annotated[Oracle, OneOf()] | None = Field(
        None, description="The oracle that scores held-out answers; `labelling.oracle` by default."
    )
    max_micro_usd: MicroUsd = Field(
        description="Most micro-dollars for the evaluation's queries. A hard cap, apart from the labels'."
    )

    @model_validator(mode="after")
    def _pairwise_judge_compares(self) -> "Evaluation":
        if self.pairwise_judge is not None and self.pairwise_judge.query_type != "pairwise":
            raise ConfigError(
                f"evaluation.pairwise_judge compares two answers, and {self.pairwise_judge.kind_name()!r} scores single "
                "ones: use a pairwise oracle, such as llm_pairwise_judge, or leave it out"
            )
        return self


class Experiment(Frozen):
    """One arm: the paper's algorithm with every choice made.

    `feedback` says who tells chosen from rejected: an evaluator that is trained on the oracle's labels (`proxy`, the paper's
    method), the `oracle` alone (`direct`), the `policy` itself (`self_reward`), `demonstrations` against the policy's own
    answers (`spin`), or `none`: M_1 is the result (`sft`). `gate` says whether an evaluator is believed, and in which
    pairs. `iterations` > 1 repeats from generation with the newest policy.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the run, its report and its exports."
    )
    seeds: Seeds = Seeds()
    prompts: Annotated[PromptSource, OneOf()]
    policy: PolicyConfig
    generation: Annotated[Generator, OneOf()] = Transformers()
    embedding: Annotated[Embedding, OneOf()] = PolicyEmbedding()
    labelling: Labelling
    evaluator: Annotated[Evaluator, OneOf()] = Generative()
    gate: Gate = Gate()
    feedback: Feedback = Field("proxy", description="Who decides which response of a pair is chosen.")
    dpo: DPO = DPO()
    iterations: PositiveInt = Field(
        1, description="How many times generation, labelling and DPO run, each time from the newest policy."
    )
    evaluation: Evaluation

    @property
    def queries_oracle(self) -> bool:
        """Whether the oracle is asked for labels to train on."""
        return self.feedback in ("proxy", "oracle")

    @property
    def evaluation_oracle(self) -> Oracle:
        """The oracle of the evaluation."""
        return self.evaluation.oracle or self.labelling.oracle

    @property
    def oracles(self) -> dict[str, Oracle]:
        """The oracles that are asked, by the field that names them; one that two fields name is there once."""
        named = {
            "labelling.oracle": self.labelling.oracle if self.queries_oracle else None,
            "evaluation.oracle": self.evaluation_oracle,
            "evaluation.pairwise_judge": self.evaluation.pairwise_judge,
        }
        asked: dict[str, tuple[str, Oracle]] = {}
        for field, oracle in named.items():
            if oracle is not None:
                asked.setdefault(oracle.digest(), (field, oracle))
        return dict(asked.values())

    @property
    def intermediate_checkpoints(self) -> int:
        """How many policies on DPO's way are kept and scored: none where there is no evaluator to score them."""
        return self.evaluation.intermediate_checkpoints if self.feedback in ("proxy", "policy") else 0

    def answers(self, prompts: int) -> int:
        """Return how many answers to so many held-out prompts the evaluation's oracle scores, at most."""
        best = self.evaluation.best_of > 0 and self.feedback in ("proxy", "policy")
        return prompts * (self.evaluation.samples * (2 + self.intermediate_checkpoints) + best)

    @property
    def simulated(self) -> bool:
        """Whether any of the oracles is simulated."""
        pairwise_judge = self.evaluation.pairwise_judge
        return (
            self.labelling.oracle.simulated
            or self.evaluation_oracle.simulated
            or (pairwise_judge is not None and pairwise_judge.simulated)
        )

    @property
    def strategy(self) -> str:
        """What people call the arm: its strategy, and what is not the paper's about it."""
        feedback, labelling = self.feedback, self.labelling
        if feedback == "none":
            return "sft"
        named = [{"policy": "self_reward", "demonstrations": "spin"}.get(feedback, labelling.acquisition.kind_name())]
        named += [labelling.pool] * (labelling.pool != "on_policy")
        named += ["direct"] * (feedback == "oracle") + ["shuffled"] * labelling.shuffle_labels
        named += [self.dpo.algorithm] * (self.dpo.algorithm != "dpo")
        return " ".join(named)

    @model_validator(mode="after")
    def _pairs_where_pairs_are_asked(self) -> "Experiment":
        oracle, strategy = self.labelling.oracle.kind_name(), self.labelling.acquisition
        if self.evaluation_oracle.query_type == "pairwise":
            raise ConfigError(
                f"the evaluation needs a pointwise oracle, and {self.evaluation_oracle.kind_name()!r} compares: set "
                "evaluation.oracle"
            )
        if self.labelling.oracle.query_type == "pointwise":
            if self.feedback == "proxy" and not self.evaluator.supports_pointwise:
                raise ConfigError(
                    f"{oracle!r} scores single answers, and evaluator {self.evaluator.kind_name()!r} learns from "
                    "comparisons: use a pairwise oracle, such as pairwise_from_scores or llm_pairwise_judge, or the "
                    "evaluator generative"
                )
            return self
        if not isinstance(strategy, PairAcquisition):
            raise ConfigError(
                f"{oracle!r} compares pairs, and acquisition {strategy.kind_name()!r} picks tuples: use a strategy over "
                "pairs, such as random_pairs or bald"
            )
        if not self.evaluator.supports_pairwise:
            raise ConfigError(
                f"{oracle!r} compares pairs, and evaluator {self.evaluator.kind_name()!r} learns from scores: use linear, "
                "generative_pairs, or reward_head with loss bradley_terry"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        rounds, kept = self.iterations * self.labelling.rounds, self.gate.relabel_queries
        if not self.queries_oracle:
            return self
        if self.labelling.queries - kept < rounds:
            less = f", less {kept} kept by gate.relabel_queries," if kept else ""
            raise ConfigError(
                f"labelling.queries={self.labelling.queries}{less} does not reach for {rounds} rounds "
                f"(iterations × labelling.rounds): raise it to at least {rounds + kept}"
            )
        if self.generation.samples < 2:
            raise ConfigError("generation.samples must be at least 2: a preference needs two responses to a prompt")
        if self.labelling.acquisition.needs.scores and rounds == 1:
            raise ConfigError(
                f"acquisition {self.labelling.acquisition.kind_name()!r} ranks by an evaluator, and with one "
                "round there is none when it picks: set labelling.rounds to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _eft_seed_from_somewhere(self) -> "Experiment":
        if self.evaluator.uses_eft_examples and not self.prompts.has_eft_examples:
            raise ConfigError(
                f"evaluator.eft_examples={getattr(self.evaluator, 'eft_examples', True)} mixes in examples that "
                f"prompts {self.prompts.kind_name()!r} do not have: set prompts.eft_examples"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_something_to_do(self) -> "Experiment":
        gate, feedback = self.gate, self.feedback
        if feedback != "proxy" and (gate.relabel_queries or gate.min_confidence > ANY_PAIR):
            raise ConfigError(
                f"gate holds an evaluator against the oracle, and feedback={feedback} trains none: leave out "
                "gate.relabel_queries and gate.min_confidence"
            )
        if gate.relabel_queries and gate.min_confidence == ANY_PAIR:
            raise ConfigError(
                f"gate.relabel_queries={gate.relabel_queries} is kept for pairs under gate.min_confidence, and none is "
                f"under {ANY_PAIR}: raise gate.min_confidence"
            )
        return self

    @model_validator(mode="after")
    def _feedback_from_someone(self) -> "Experiment":
        feedback, labelling = self.feedback, self.labelling
        if not self.queries_oracle and labelling.queries:
            raise ConfigError(
                f"feedback={feedback} asks the oracle nothing, and labelling.queries={labelling.queries}: set it to 0"
            )
        if feedback == "policy" and not self.evaluator.supports_zero_shot:
            raise ConfigError(
                f"feedback=policy needs an evaluator that judges zero-shot, and {self.evaluator.kind_name()!r} does not: "
                "set evaluator.kind to generative"
            )
        if feedback != "proxy" and labelling.shuffle_labels:
            raise ConfigError(f"feedback={feedback} trains no evaluator: labelling.shuffle_labels shuffles nothing")
        if feedback == "oracle" and labelling.acquisition.needs.scores:
            raise ConfigError(
                f"feedback=oracle trains no evaluator, and acquisition {labelling.acquisition.kind_name()!r} ranks by one: "
                "use random or random_pairs"
            )
        if labelling.pool != "on_policy" and (feedback != "proxy" or labelling.oracle.query_type == "pairwise"):
            raise ConfigError(
                f"labelling.pool={labelling.pool} has one response to a prompt, which trains an evaluator by its score: "
                "it needs feedback=proxy and a pointwise oracle"
            )
        return self
