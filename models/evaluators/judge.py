"""Base of generative evaluators: fine-tune the language model on a judging prompt, as an ensemble."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from models.core.data import Demonstration
from models.core.errors import ConfigError
from models.core.randomness import seed_of, stream
from models.evaluators.base import Evaluator, FitContext
from models.policies.checkpoint import Checkpoint
from models.training.mc_dropout import drop_inputs
from models.training.sft import SFT, train_sft

_TRAINED, _MEMBER = "trained", "judge-{}"


class Judge(Evaluator):
    """A policy fine-tuned on judging questions and their answers; one member, or an ensemble for epistemic uncertainty.

    Members are adapters that differ in their beginning and in the order of the examples (2310.00035), or one adapter with
    other inputs dropped in each (1506.02142), which is one training for all.
    """

    training: SFT = SFT(learning_rate=3e-4, epochs=4.0)
    init_from: Literal["policy", "base"] = Field(
        "policy", description="What is trained to judge: M_1, or the base model M_0."
    )
    ensemble: PositiveInt = Field(1, description="Members of the ensemble, each of which judges every text.")
    ensemble_by: Literal["adapters", "dropout"] = Field(
        "adapters", description="What members differ in: a training each, or what the one adapter's dropout drops."
    )
    batch_size: PositiveInt = Field(16, description="Texts judged at once. It does not change the result.")

    @model_validator(mode="after")
    def _something_to_drop(self) -> Self:
        if self.ensemble_by == "dropout" and not self._dropout:
            raise ConfigError(
                "evaluator.ensemble_by=dropout drops nothing while evaluator.training.lora.dropout is 0: set it, to 0.1 for "
                "example"
            )
        return self

    @property
    def _dropout(self) -> float:
        return 0.0 if self.training.lora is None else self.training.lora.dropout

    def _learn(self, examples: Sequence[Demonstration], context: FitContext) -> dict[str, float]:
        """Train every member on the examples, save them and return the trainings' mean metrics."""
        if self.ensemble_by == "dropout":
            facts = self._train(examples, context, 0, context.folder / _TRAINED)
            for number in range(self.ensemble):
                rng = stream(context.seed, number, "judge dropout")
                member = context.folder / _MEMBER.format(number)
                drop_inputs(context.folder / _TRAINED, member, self._dropout, rng)
            return facts
        found = [
            self._train(examples, context, number, context.folder / _MEMBER.format(number))
            for number in range(self.ensemble)
        ]
        return {name: float(np.mean([facts[name] for facts in found])) for name in found[0]}

    def _train(
        self, examples: Sequence[Demonstration], context: FitContext, number: int, folder: Path
    ) -> dict[str, float]:
        seed = seed_of(context.seed, number, "judge")
        return train_sft(self._untaught(context).load_copy(), examples, self.training, folder=folder, seed=seed)

    def _judges(self, context: FitContext) -> list[Checkpoint]:
        """Return the members, to be loaded one at a time; the policy itself if nothing was trained."""
        start = self._untaught(context)
        members = [context.folder / _MEMBER.format(number) for number in range(self.ensemble)]
        if not members[0].exists():
            return [start]
        return [replace(start, adapters=(*start.adapters, member)) for member in members]

    def _untaught(self, context: FitContext) -> Checkpoint:
        return context.policy if self.init_from == "policy" else replace(context.policy, adapters=())
