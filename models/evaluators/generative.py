"""The paper's evaluator: the language model fine-tuned to answer the judging prompt with a justification and a score."""

import json
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from models.evaluators.base import Bench, Evaluator, Floats, Tuples, check_trainable
from models.generators.hf import Transformers
from models.policies.language_model import Checkpoint, LanguageModel
from models.policies.sft import SFT, train_sft
from models.preference import Demonstration, Prompt
from models.rubric import LEVELS, parse_score

_ADAPTER, _LEVELS = "generative", "levels.json"


class Generative(Evaluator):
    """Fine-tune on rubric + x + y → "justification, Score: s" (EFT).

    `expected` reads Σ_s p(s) · value(s) from the distribution over the score token, in one forward pass; `sampled`
    parses and averages sampled judgements. The expert's scale is cut into levels 0…5 at the quantiles of its labels;
    value(s) is the mean label of level s, so that scores come back in the expert's unit.
    """

    judges_untaught: ClassVar[bool] = True

    kind: Literal["generative"] = "generative"
    schedule: SFT = SFT(learning_rate=3e-4, epochs=4.0)
    read: Literal["expected", "sampled"] = Field("expected", description="expected value, or mean of samples")
    judgements: PositiveInt = Field(3, description="sampled ones")
    batch_size: PositiveInt = Field(16, description="texts at once")

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        check_trainable(scores)
        levels = _levels(scores)
        values = {int(level): float(scores[levels == level].mean()) for level in np.unique(levels)}
        examples = [
            Demonstration(bench.rubric.render(r.prompt, r.text), bench.rubric.answer(int(level)))
            for r, level in zip(tuples.responses, levels, strict=True)
        ]
        facts = train_sft(bench.policy.load(), examples, self.schedule, folder=bench.folder / _ADAPTER, seed=bench.seed)
        (bench.folder / _LEVELS).write_text(json.dumps(values))
        return facts | {"levels": float(len(values))}

    def untaught(self, bench: Bench) -> dict[str, float]:  # noqa: D102
        # the policy judges as it is (Self-Rewarding LM, 2401.10020): levels are points
        (bench.folder / _LEVELS).write_text(json.dumps({level: float(level) for level in range(LEVELS)}))
        return {"levels": float(LEVELS)}

    def members(self, tuples: Tuples, bench: Bench) -> Floats:  # noqa: D102
        saved = json.loads((bench.folder / _LEVELS).read_text())
        values = {int(level): value for level, value in saved.items()}
        base = bench.policy
        learnt = [bench.folder / _ADAPTER] if (bench.folder / _ADAPTER).exists() else []
        judge = Checkpoint(base.source, (*base.adapters, *learnt), base.dtype, base.template).load()
        prompts = [bench.rubric.render(r.prompt, r.text) for r in tuples.responses]
        if self.read == "expected":
            answers = {level: bench.rubric.answer(level) for level in values}
            return _expected(judge, prompts, answers, values, self.batch_size)[None, :]
        return self._sampled(judge, prompts, values, bench.seed)[None, :]

    def _sampled(self, judge: LanguageModel, prompts: list[str], values: dict[int, float], seed: int) -> Floats:
        generator = Transformers(max_new_tokens=128, batch_size=self.batch_size)
        asked = [Prompt(id=str(row), text=text) for row, text in enumerate(prompts)]
        judgements = generator.sample_from(judge, asked, samples=self.judgements, seed=seed, what="judging")
        scores = np.full((len(prompts), self.judgements), np.nan)
        for judgement in judgements:
            level = parse_score(judgement.text)
            if level in values:
                scores[int(judgement.prompt_id), judgement.sample] = values[level]
        parsed = np.isfinite(scores)
        return np.where(parsed.any(1), np.nansum(scores, 1) / np.maximum(parsed.sum(1), 1), np.nan)


def _levels(scores: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Cut the scores into at most six levels, of equal size where they are not tied; equal scores share a level."""
    distinct, rank = np.unique(scores, return_inverse=True)
    if len(distinct) > LEVELS:
        edges = np.unique(np.quantile(scores, np.arange(1, LEVELS) / LEVELS))
        _, rank = np.unique(np.searchsorted(edges, scores, side="left"), return_inverse=True)
        if rank.max() == 0:  # nearly all labels are the highest score
            rank = scores == distinct[-1]
    return rank.astype(np.int64)


def _expected(
    judge: LanguageModel,
    prompts: list[str],
    answers: dict[int, str],
    values: dict[int, float],
    batch_size: int,
) -> Floats:
    """Return the expected value over the score token that follows the answers' common beginning."""
    import torch

    rows = []
    for prompt in prompts:
        encoded = [judge.renderer.encode(prompt, answer).ids for answer in answers.values()]
        shared = next(t for t in range(len(encoded[0])) if len({ids[t] for ids in encoded}) > 1)
        if len({ids[shared] for ids in encoded}) < len(encoded):
            raise ValueError("this tokenizer does not tell the score levels apart by one token: use read: sampled")
        rows.append((encoded[0][:shared], [ids[shared] for ids in encoded]))
    value = np.array([values[level] for level in answers])
    expected = np.zeros(len(rows))
    for numbers, ids, mask in judge.batches([row[0] for row in rows], batch_size, "judging"):
        with torch.inference_mode():
            states = judge.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            logits = judge.model.lm_head(states[torch.arange(len(numbers)), mask.sum(1) - 1]).float()
        for position, number in enumerate(numbers):
            probability = torch.softmax(logits[position, rows[number][1]], dim=-1).cpu().numpy()
            expected[number] = float(probability @ value)
    return expected
