"""Generative evaluator (the paper's): the language model fine-tuned to write a justification and a score."""

import json
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core.arrays import FloatArray
from models.core.data import Demonstration, Prompt, ScoredExample
from models.core.rubric import LEVELS, parse_score
from models.evaluators.base import Examples, FitContext, check_trainable
from models.evaluators.judge import Judge
from models.evaluators.ordinal import balanced, levels_of
from models.generators.hf import Transformers
from models.policies.choice_scoring import choice_logprob
from models.policies.language_model import LanguageModel

_LEVELS = "levels.json"
SAMPLED_TOKENS = 128  # at least that many may be sampled


class Generative(Judge):
    """Fine-tune on rubric + x + y → "justification, Score: s" (EFT).

    `expected` is trained the score alone and reads Σ_s p(s) · value(s) from the distribution over its token, in one forward
    pass; `sampled` is trained the oracle's justification too, where it gave one, and parses and averages sampled judgements.
    The oracle's scale is cut into levels 0…5 at the quantiles of its labels; value(s) is the mean label of level s, so that
    scores come back in the oracle's unit. Examples of the EFT examples are cut likewise, on a scale of their own.
    """

    supports_zero_shot: ClassVar[bool] = True

    kind: Literal["generative"] = "generative"
    scoring: Literal["expected", "sampled"] = Field(
        "expected",
        description="How a score is read: its expected value over the score's token, or the mean of sampled judgements.",
    )
    num_samples: PositiveInt = Field(
        3, description="Number of judgements sampled for each response, with `scoring: sampled`."
    )
    eft_examples: Literal["none", "raw", "balanced"] = Field(
        "none",
        description="Off-policy examples mixed into training: none, as they are, or every level as often.",
    )

    @property
    @override
    def uses_eft_examples(self) -> bool:
        return self.eft_examples != "none"

    @override
    def fit(self, tuples: Examples, scores: FloatArray, context: FitContext) -> dict[str, float]:
        check_trainable(scores)
        levels = levels_of(scores)
        values = {int(level): float(scores[levels == level].mean()) for level in np.unique(levels)}
        remarks = tuples.remarks if self.scoring == "sampled" and tuples.remarks else [""] * len(scores)
        examples = [
            Demonstration(context.rubric.render(r.prompt, r.text), context.rubric.answer(int(level), remark))
            for r, level, remark in zip(tuples.responses, levels, remarks, strict=True)
        ]
        seed_examples = self._seed_examples(context, len(values))
        facts = self._learn([*examples, *seed_examples], context)
        return facts | self._save(values, examples, context) | {"eft_examples": float(len(seed_examples))}

    @override
    def init_zero_shot(self, context: FitContext) -> dict[str, float]:
        # the policy judges as it is, or as trained on the EFT examples (Self-Rewarding LM, 2401.10020): levels are points
        examples = self._seed_examples(context, LEVELS)
        facts = self._learn(examples, context) if examples else {}
        saved = self._save({level: float(level) for level in range(LEVELS)}, examples, context)
        return facts | saved | {"eft_examples": float(len(examples))}

    @override
    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        saved = json.loads((context.folder / _LEVELS).read_text())
        values = {int(level): float(value) for level, value in saved["values"].items()}
        prompts = [context.rubric.render(r.prompt, r.text) for r in tuples.responses]
        if self.scoring == "expected":
            return np.stack(
                [self._expected(judge.load_copy(), prompts, values, context) for judge in self._judges(context)]
            )
        generator = Transformers(max_new_tokens=saved["answer_tokens"], batch_size=self.batch_size)
        members = np.stack(
            [
                self._sampled(judge.load_copy(), prompts, values, generator, context.seed)
                for judge in self._judges(context)
            ]
        )
        # what one member could not say, the others say for it; NaN where none could
        return np.where(np.isfinite(members), members, _mean_of_parsed(members, axis=0))

    def _expected(
        self, judge: LanguageModel, prompts: list[str], values: dict[int, float], context: FitContext
    ) -> FloatArray:
        answers = [context.rubric.answer(level) for level in values]
        logprob = choice_logprob(judge, prompts, answers, batch_size=self.batch_size, what="judging")
        return np.asarray(np.exp(logprob) @ np.array(list(values.values())))

    def _sampled(
        self, judge: LanguageModel, prompts: list[str], values: dict[int, float], generator: Transformers, seed: int
    ) -> FloatArray:
        # numbered by its own text, a judgement is the same whatever else is judged
        asked = [Prompt.of(text) for text in prompts]
        judgements = generator.sample_from(judge, asked, samples=self.num_samples, seed=seed, what="judging")
        levels = [parse_score(judgement.text) for judgement in judgements]
        scores = np.array([values.get(level, np.nan) if level is not None else np.nan for level in levels])
        return _mean_of_parsed(scores.reshape(len(prompts), self.num_samples), axis=1)

    def _seed_examples(self, context: FitContext, levels: int) -> list[Demonstration]:
        """Return the EFT examples in as many levels as the labels have, which give the levels their value."""
        rows: Sequence[ScoredExample] = context.eft_examples if self.uses_eft_examples else ()
        if not rows:
            return []
        level = levels_of(np.array([row.score for row in rows]), levels)
        # few scores reach from the lowest level to the highest as well
        level = np.rint(level * ((levels - 1) / max(level.max(), 1))).astype(np.int64)
        drawn = np.arange(len(rows))
        if self.eft_examples == "balanced":
            drawn = balanced(level.astype(np.float64), np.random.default_rng(context.seed))
        return [
            Demonstration(context.rubric.render(rows[n].prompt, rows[n].response), context.rubric.answer(int(level[n])))
            for n in drawn.tolist()
        ]

    @staticmethod
    def _save(
        values: dict[int, float], examples_used: Sequence[Demonstration], context: FitContext
    ) -> dict[str, float]:
        """Save the levels' values, and how long an answer may be: as the longest that is trained, with its end."""
        tokenizer = context.policy.load_tokenizer()
        longest = max((len(tokenizer(example.response)["input_ids"]) for example in examples_used), default=0)
        saved = {"values": values, "answer_tokens": max(SAMPLED_TOKENS, longest + 2)}
        (context.folder / _LEVELS).write_text(json.dumps(saved))
        return {"levels": float(len(values))}


def _mean_of_parsed(scores: FloatArray, axis: int) -> FloatArray:
    parsed = np.isfinite(scores)
    return np.where(parsed.any(axis), np.nansum(scores, axis) / np.maximum(parsed.sum(axis), 1), np.nan)
