"""A linear head on frozen embeddings and on what the text looks like: trains in milliseconds, with an ensemble."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from models.embedding import View
from models.evaluators.base import Bench, Evaluator, Floats, Tuples, check_trainable
from models.mixed_ridge import Rows, choose_penalty, restore, solve, temperature, within
from models.surface import length, style

_WEIGHTS = "linear.safetensors"
_MOST_PAIRS = 8192  # 1,700 labels make 1.4 million pairs, which no memory holds as features
_FREE = 1e3  # a column this large is as good as not penalised
_ALPHAS = np.logspace(-1.5, 3, 19)


class Linear(Evaluator):
    """Ridge regression on the scores with a random effect per prompt, or Bradley–Terry on pairs of labelled tuples.

    Columns are standardised; `embedding`, `style` and `length` weigh their blocks against one another (0 leaves one out).
    `prompt_effect` is the variance of a prompt's own level over that of the noise: what is learnt is mostly which answer
    to a prompt is better, which is what pairs are made of. Members differ by the Bayesian bootstrap (Rubin 1981): each
    weighs the labels by its own draw from a flat Dirichlet.
    """

    feature_view: ClassVar[View | None] = "response"

    kind: Literal["linear"] = "linear"
    loss: Literal["ridge", "bradley_terry"] = "ridge"
    ensemble: PositiveInt = 16
    strength: PositiveFloat = 1.0
    prompt_effect: NonNegativeFloat = 10.0
    embedding: NonNegativeFloat = 0.5
    style: NonNegativeFloat = 0.5
    length: NonNegativeFloat = 1.0

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        from safetensors.numpy import save_file

        check_trainable(scores)
        columns, weight = self._columns(tuples)
        centre, scale = columns.mean(axis=0), columns.std(axis=0)
        scale = np.where(scale > 1e-9, scale, np.inf)  # a column that never varies says nothing
        level, spread = float(scores.mean()), float(scores.std())
        rng = np.random.default_rng(bench.seed)
        weights = rng.dirichlet(np.ones(len(scores)), size=self.ensemble) * len(scores)
        _, prompt = np.unique([r.prompt_id for r in tuples.responses], return_inverse=True)
        fit = self._fit_ridge if self.loss == "ridge" else self._fit_bradley_terry
        heads, facts = fit(
            (columns - centre) / scale * weight,
            (scores - level) / spread,
            prompt.astype(np.int64),
            weights,
            rng,
        )
        saved = {
            "coefficients": heads[:, :-1] * weight / scale * spread,
            "intercepts": heads[:, -1] * spread + level,
            "centre": centre,
            "temperature": np.array([facts["temperature"] * spread]),
        }
        save_file({name: np.ascontiguousarray(value) for name, value in saved.items()}, bench.folder / _WEIGHTS)
        return facts | {"temperature": facts["temperature"] * spread}

    def members(self, tuples: Tuples, bench: Bench) -> Floats:  # noqa: D102
        from safetensors.numpy import load_file

        saved = load_file(bench.folder / _WEIGHTS)
        scores = saved["coefficients"] @ (self._columns(tuples)[0] - saved["centre"]).T + saved["intercepts"][:, None]
        return np.asarray(scores, dtype=np.float64)

    def temperature(self, bench: Bench) -> float:  # noqa: D102
        from safetensors.numpy import load_file

        return float(load_file(bench.folder / _WEIGHTS)["temperature"][0])

    def _columns(self, tuples: Tuples) -> tuple[Floats, Floats]:
        """Return the columns (N, p), and each one's weight: that of its block, shared out among the block's columns."""
        if tuples.features is None:
            raise ValueError("the linear evaluator needs features of the response view")
        texts = [r.text for r in tuples.responses]
        blocks = [
            (np.asarray(tuples.features, dtype=np.float64), self.embedding),
            (style([r.prompt for r in tuples.responses], texts), self.style),
            (length(texts), self.length),
        ]
        weights = [np.full(block.shape[1], weight / np.sqrt(block.shape[1])) for block, weight in blocks]
        return np.concatenate([block for block, _ in blocks], axis=1), np.concatenate(weights)

    def _fit_ridge(
        self, features: Floats, scores: Floats, prompt: Rows, weights: Floats, rng: np.random.Generator
    ) -> tuple[Floats, dict[str, float]]:
        """Return the heads, shape (E, p + 1) with the intercept last, of standardised scores."""
        table = np.concatenate([features, np.full((len(scores), 1), _FREE), scores[:, None]], axis=1)
        table = within(table, prompt, self.prompt_effect)
        x, y = table[:, :-1], table[:, -1]
        # The penalty is chosen by the exact error on what is left out, once, then shared by the members. Rows that share
        # their prompt's mean are left out together.
        apart = prompt if self.prompt_effect else np.arange(len(scores))
        chosen = choose_penalty(x, y, apart, self.strength * _ALPHAS)
        told = restore(np.stack([chosen.left_out, y], axis=1), prompt, self.prompt_effect)
        heads = np.stack([solve(x, y, weight, chosen.alpha) for weight in weights])
        heads[:, -1] *= _FREE
        facts = {
            "alpha": chosen.alpha,
            "left_out_r2": 1.0 - float(np.mean((y - chosen.left_out) ** 2) / np.var(y)) if np.ptp(y) else 0.0,
            "temperature": temperature(told[:, 0], told[:, 1], prompt, rng),
        }
        return heads, facts

    def _fit_bradley_terry(
        self, features: Floats, scores: Floats, prompt: Rows, weights: Floats, rng: np.random.Generator
    ) -> tuple[Floats, dict[str, float]]:
        """Return the heads as `_fit_ridge` does. A difference of scores is a logit already: the temperature is 1."""
        from sklearn.linear_model import LogisticRegression

        better, worse = np.nonzero(scores[:, None] > scores[None, :])
        # pairs within a prompt come first: they are the question
        order = np.lexsort((rng.random(len(better)), prompt[better] != prompt[worse]))
        drawn = order[:_MOST_PAIRS]
        sign = rng.choice([-1.0, 1.0], size=len(drawn))
        sign[:2] = [-1.0, 1.0][: len(drawn)]  # a classifier needs both outcomes
        better, worse = better[drawn], worse[drawn]
        differences = sign[:, None] * (features[better] - features[worse])
        if len(drawn) == 1:
            differences, sign = np.concatenate([differences, -differences]), np.array([-1.0, 1.0])
            better, worse = np.repeat(better, 2), np.repeat(worse, 2)
        heads = []
        for weight in weights:
            pair_weight = weight[better] * weight[worse] * len(scores) / len(better)
            model = LogisticRegression(C=1.0 / self.strength, fit_intercept=False, max_iter=1000)
            heads.append(model.fit(differences, sign > 0, sample_weight=pair_weight).coef_[0])
        facts = {"pairs": float(len(differences)), "temperature": 1.0}
        return np.concatenate([np.stack(heads), np.zeros((len(heads), 1))], axis=1), facts
