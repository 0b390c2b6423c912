"""Schema of a label-efficiency study."""

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from flows.config.experiment import PolicyConfig
from models.acquisition.base import Acquisition
from models.acquisition.random import Random
from models.acquisition.random_pairs import RandomPairs
from models.core.errors import ConfigError
from models.core.registry import Frozen, OneOf
from models.embeddings.base import Embedding, View
from models.evaluators.base import Evaluator
from models.evaluators.length import Length
from models.evaluators.linear import Linear
from models.oracles.replay import Replay
from models.policies.resolve import check_reference
from models.studies.recorded import CLEAR_GAP

_FEW_PROMPTS = 10


class StudyArm(NamedTuple):
    """A strategy with the evaluator that learns from its labels; `shuffle` is the control that must learn nothing."""

    name: str
    strategy: Acquisition
    evaluator: Evaluator
    shuffle: bool = False


class LabelEfficiency(Frozen):
    """Every strategy on the same recorded labels, the same splits and the same first batches."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Name of the study's report.")
    labels: Replay = Field(description="The recorded labels, which are bought again from the record.")
    embedding: Annotated[Embedding, OneOf()]
    policy: PolicyConfig | None = Field(
        None, description="The policy whose hidden states are taken, for embedding.kind policy."
    )
    evaluator: Annotated[Evaluator, OneOf()] = Linear()
    strategies: tuple[Annotated[Acquisition, OneOf()], ...] = Field(
        min_length=1, description="Strategies that are compared with one another."
    )
    budgets: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        min_length=3, description="Numbers of labels at which the evaluator is fitted, ascending."
    )
    seeds: int = Field(
        10,
        ge=2,
        description="Number of seeds. Strategies are paired by seed: each fixes a split, a first batch and every draw.",
    )
    responses_per_prompt: int = Field(16, ge=2, description="Most prompts of the record that are used; all by default.")
    held_out: float = Field(0.3, gt=0, lt=1, description="Share of the prompts that are held out.")

    @model_validator(mode="after")
    def _consistent(self) -> "LabelEfficiency":
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ConfigError(f"budgets must ascend, got {list(self.budgets)}")
        for strategy in self.strategies:
            if strategy.needs.logprob:
                raise ConfigError(
                    f"strategies: {strategy.kind_name()!r} needs log-probabilities of the policy that wrote the responses, "
                    "which a table of labels does not hold: remove it"
                )
        if self.evaluator.feature_view is None:
            raise ConfigError(f"evaluator {self.evaluator.kind_name()!r} must learn from frozen features: use linear")
        if self.embedding.needs_policy and self.policy is None:
            raise ConfigError("embedding.kind policy needs a policy whose hidden states it takes: set policy.model")
        return self

    def arms(self) -> list[StudyArm]:
        """Return the arms: random and random_pairs, each strategy, then the two controls.

        A strategy over pairs buys both answers of a prompt and random single ones, which alone makes a difference:
        random_pairs is what its ranking must beat.
        """
        controls: tuple[Acquisition, ...] = (Random(), RandomPairs())
        arms = [StudyArm(control.kind_name(), control, self.evaluator) for control in controls]
        for strategy in self.strategies:
            if strategy in controls:
                continue
            names = {arm.name for arm in arms}
            name = strategy.kind_name()
            arms.append(
                StudyArm(name if name not in names else f"{name}-{strategy.digest()[:4]}", strategy, self.evaluator)
            )
        arms.append(StudyArm("random, length only", Random(), Length()))
        arms.append(StudyArm("random, shuffled labels", Random(), self.evaluator, shuffle=True))
        return arms

    def views(self) -> list[View]:
        """Return the views to embed. A table names no rubric: the evaluation view is that of x + y."""
        needed = {arm.strategy.needs.view for arm in self.arms()} | {self.evaluator.feature_view}
        return [view for view in ("instruction", "response") if view in needed or "evaluation" in needed]

    def plan(self) -> list[str]:
        """Return what the study will do as lines of text; raise before anything runs if the table cannot be read."""
        frame = self.labels.frame()
        self.embedding.check()
        if self.policy is not None:
            check_reference(self.policy.model)
        per_prompt = frame.groupby("prompt").score
        taken = np.sort(np.minimum(per_prompt.size().to_numpy(), self.responses_per_prompt))
        prompts = len(taken)
        held = max(1, round(prompts * self.held_out))
        pool = int(taken[: prompts - held].sum())  # the smallest that a split can leave
        if self.budgets[-1] > pool:
            raise ConfigError(
                f"budgets: {self.budgets[-1]} passes the pool, which may hold no more than {pool} tuples ({prompts} prompts "
                f"of up to {self.responses_per_prompt} responses, {held} held out): lower it"
            )
        if ((per_prompt.max() - per_prompt.min()) > CLEAR_GAP).sum() < _FEW_PROMPTS:
            raise ConfigError(
                f"labels: fewer than {_FEW_PROMPTS} prompts have two labels more than {CLEAR_GAP:g} apart, which is what "
                "agreement is counted on: set labels.scale to logit if these are probabilities"
            )
        arms = self.arms()
        return [
            f"study      {self.name}: {len(arms)} arms × {self.seeds} seeds, budgets {', '.join(map(str, self.budgets))}",
            f"labels     {len(frame)} recorded judgements of {prompts} prompts in {self.labels.path}; nothing is bought",
            f"arms       {', '.join(arm.name for arm in arms)}",
        ]
