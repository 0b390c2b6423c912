"""Generative pairwise evaluator: the language model fine-tuned to say which of two responses is better."""

from typing import ClassVar, Literal

import numpy as np
from typing_extensions import override

from models.core.arrays import FloatArray, IntArray
from models.core.data import Demonstration
from models.evaluators.base import Examples, FitContext, check_decided
from models.evaluators.judge import Judge
from models.metrics.agreement import group_ids, within_prompt_pairs
from models.policies.choice_scoring import choice_logprob

_FIRST, _SECOND = "Better: A", "Better: B"


class GenerativePairs(Judge):
    """Fine-tune on rubric + x + y_a + y_b → "Better: A", each comparison in both orders.

    Every two of a prompt's k responses are compared, k (k − 1) judgements to a prompt. The score of a response is the mean
    over the k of log p(it is better) − log p(the other is), which is the least-squares fit of scores to these logits: it
    counts within its prompt only, and a response alone has the score 0. Each judge is two members, one of all judgements in
    which the response stood first and one of those in which it stood second, so that the mean knows no place.
    """

    supports_pointwise: ClassVar[bool] = False
    supports_zero_shot: ClassVar[bool] = True

    kind: Literal["generative_pairs"] = "generative_pairs"

    @property
    @override
    def supports_pairwise(self) -> bool:
        return True

    @override
    def fit_pairs(
        self, first: Examples, second: Examples, preference: FloatArray, context: FitContext
    ) -> dict[str, float]:
        check_decided(preference)
        examples = []
        for row in np.flatnonzero(preference).tolist():
            one, other = first.responses[row], second.responses[row]
            better, worse = (one.text, other.text) if preference[row] > 0 else (other.text, one.text)
            for answer, sides in ((_FIRST, (better, worse)), (_SECOND, (worse, better))):
                examples.append(Demonstration(context.rubric.render_pair(one.prompt, *sides), answer))
        return self._learn(examples, context)

    @override
    def init_zero_shot(self, context: FitContext) -> dict[str, float]:
        del context  # the policy compares as it is
        return {}

    @override
    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        prompt, count = _prompts(tuples)
        one, other = within_prompt_pairs(prompt)
        first, second = np.concatenate([one, other]), np.concatenate([other, one])
        rows = tuples.responses
        questions = [
            context.rubric.render_pair(rows[a].prompt, rows[a].text, rows[b].text)
            for a, b in zip(first, second, strict=True)
        ]
        found = []
        for judge in self._judges(context):
            answers = [_FIRST, _SECOND]
            logprob = choice_logprob(
                judge.load_copy(), questions, answers, batch_size=self.batch_size, what="pairwise_from_scores"
            )
            logit = logprob[:, 0] - logprob[:, 1]
            found += [np.bincount(first, logit, len(rows)) / count, np.bincount(second, -logit, len(rows)) / count]
        return np.array(found)

    @override
    def diagnostics(self, members: FloatArray, tuples: Examples) -> dict[str, float]:
        # a judge that likes the first place by b logits says s + b (k − 1)/k of a response there, s − b (k − 1)/k elsewhere
        _, count = _prompts(tuples)
        compared = count > 1
        if not compared.any():
            return {}
        k = count[compared]
        return {"position_bias": float(((members[::2] - members[1::2])[:, compared] / 2 * k / (k - 1)).mean())}


def _prompts(tuples: Examples) -> tuple[IntArray, FloatArray]:
    """Return each response's prompt by number, and how many responses that prompt has."""
    prompt = group_ids([r.prompt_id for r in tuples.responses])
    return prompt, np.bincount(prompt)[prompt].astype(np.float64)
