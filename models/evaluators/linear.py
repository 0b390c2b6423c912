"""Linear evaluator on frozen embeddings and text features, with an ensemble; fits in milliseconds."""

from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from typing_extensions import override

from models.core.arrays import FloatArray, IntArray
from models.core.errors import ConfigError
from models.embeddings.base import View
from models.evaluators.base import Evaluator, Examples, FitContext, check_decided, check_trainable
from models.evaluators.mixed_ridge import choose_penalty, restore, solve, within
from models.evaluators.text_features import length, style
from models.metrics.agreement import group_ids, within_prompt_pairs
from models.metrics.calibration import temperature, temperature_of

_WEIGHTS = "linear.safetensors"
_MOST_PAIRS = 8192  # 1,700 labels make 1.4 million pairs, which no memory holds as features
_FREE = 1e3  # a column this large is as good as not penalised
_ALPHAS = np.logspace(-1.5, 3, 19)


class _Standard(NamedTuple):
    """How columns are brought to one scale: (columns − centre) · factor, both of shape (p,)."""

    centre: FloatArray
    factor: FloatArray

    @classmethod
    def of(cls, columns: FloatArray, weight: FloatArray) -> "_Standard":
        scale = columns.std(axis=0)
        # a column that never varies says nothing
        return cls(columns.mean(axis=0), np.where(scale > 1e-9, weight / np.maximum(scale, 1e-9), 0.0))


class Linear(Evaluator):
    """Ridge regression on the scores with a random effect per prompt, or Bradley–Terry on pairs of labelled tuples.

    Comparisons are learned as differences of columns: by least squares on the preference, or by Bradley–Terry.

    Columns are standardised; `embedding`, `style` and `length` weigh their blocks against one another (0 leaves one out).
    `prompt_effect` is the variance of a prompt's own level over that of the noise: what is learned is mostly which answer
    to a prompt is better, which is what pairs are made of. Members differ by the Bayesian bootstrap (Rubin 1981): each
    weighs the labels by its own draw from a flat Dirichlet.
    """

    feature_view: ClassVar[View | None] = "response"

    kind: Literal["linear"] = "linear"
    loss: Literal["ridge", "bradley_terry"] = Field("ridge", description="The loss that is minimised.")
    ensemble: PositiveInt = Field(16, description="Members of the ensemble.")
    l2_scale: PositiveFloat = Field(1.0, description="Factor on the penalties that are tried.")
    prompt_effect: NonNegativeFloat = Field(
        10.0, description="Variance of a prompt's own level, as a multiple of the noise's; 0 leaves it out."
    )
    embedding: NonNegativeFloat = Field(1.0, description="Weight of the embedding among the features.")
    style: NonNegativeFloat = Field(0.5, description="Weight of the text features (lists, digits, vocabulary).")
    length: NonNegativeFloat = Field(1.0, description="Weight of the response's length.")

    @property
    @override
    def supports_pairwise(self) -> bool:
        return True

    @override
    def fit(self, tuples: Examples, scores: FloatArray, context: FitContext) -> dict[str, float]:
        check_trainable(scores)
        columns, weight = self._columns(tuples)
        standard = _Standard.of(columns, weight)
        level, spread = float(scores.mean()), float(scores.std())
        rng = np.random.default_rng(context.seed)
        weights = rng.dirichlet(np.ones(len(scores)), size=self.ensemble) * len(scores)
        fit = self._fit_ridge if self.loss == "ridge" else self._fit_bradley_terry
        heads, facts = fit(
            (columns - standard.centre) * standard.factor,
            (scores - level) / spread,
            _numbered(tuples),
            weights,
            rng,
        )
        return facts | _save(context, standard, heads, facts["temperature"], level=level, spread=spread)

    @override
    def fit_pairs(
        self, first: Examples, second: Examples, preference: FloatArray, context: FitContext
    ) -> dict[str, float]:
        check_decided(preference)
        (one, weight), (other, _) = self._columns(first), self._columns(second)
        standard = _Standard.of(np.concatenate([one, other]), weight)
        rng = np.random.default_rng(context.seed)
        weights = rng.dirichlet(np.ones(len(preference)), size=self.ensemble) * len(preference)
        heads, facts = self._fit_differences((one - other) * standard.factor, preference, _numbered(first), weights)
        return facts | _save(context, standard, heads, facts["temperature"], level=0.0, spread=1.0)

    @override
    def predict(self, tuples: Examples, context: FitContext) -> FloatArray:
        from safetensors.numpy import load_file

        saved = load_file(context.folder / _WEIGHTS)
        scores = saved["coefficients"] @ (self._columns(tuples)[0] - saved["centre"]).T + saved["intercepts"][:, None]
        return np.asarray(scores, dtype=np.float64)

    @override
    def temperature(self, context: FitContext) -> float:
        from safetensors.numpy import load_file

        return float(load_file(context.folder / _WEIGHTS)["temperature"][0])

    def _columns(self, tuples: Examples) -> tuple[FloatArray, FloatArray]:
        """Return the columns (N, p), and each one's weight: that of its block, shared out among the block's columns."""
        if tuples.features is None:
            raise ConfigError("the linear evaluator needs features of the response view")
        texts = [r.text for r in tuples.responses]
        blocks = [
            (np.asarray(tuples.features, dtype=np.float64), self.embedding),
            (style([r.prompt for r in tuples.responses], texts), self.style),
            (length(texts), self.length),
        ]
        weights = [np.full(block.shape[1], weight / np.sqrt(block.shape[1])) for block, weight in blocks]
        return np.concatenate([block for block, _ in blocks], axis=1), np.concatenate(weights)

    def _fit_ridge(
        self, features: FloatArray, scores: FloatArray, prompt: IntArray, weights: FloatArray, rng: np.random.Generator
    ) -> tuple[FloatArray, dict[str, float]]:
        """Return the heads, shape (E, p + 1) with the intercept last, of standardised scores."""
        table = np.concatenate([features, np.full((len(scores), 1), _FREE), scores[:, None]], axis=1)
        table = within(table, prompt, self.prompt_effect)
        x, y = table[:, :-1], table[:, -1]
        # The penalty is chosen by the exact error on what is left out, once, then shared by the members. Rows that share
        # their prompt's mean are left out together.
        apart = prompt if self.prompt_effect else np.arange(len(scores))
        chosen = choose_penalty(x, y, apart, self.l2_scale * _ALPHAS)
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
        self, features: FloatArray, scores: FloatArray, prompt: IntArray, weights: FloatArray, rng: np.random.Generator
    ) -> tuple[FloatArray, dict[str, float]]:
        """Return the heads as `_fit_ridge` does. A difference of scores is a logit already: the temperature is 1."""
        first, second = within_prompt_pairs(prompt)  # before all others: they are the question
        others = rng.integers(len(scores), size=(2, _MOST_PAIRS))
        first, second = np.concatenate([first, others[0]]), np.concatenate([second, others[1]])
        untied = np.flatnonzero(scores[first] != scores[second])[:_MOST_PAIRS]
        first, second = first[untied], second[untied]
        weights = weights[:, first] * weights[:, second] * len(scores) / len(first)
        heads = self._logistic(features[first] - features[second], np.sign(scores[first] - scores[second]), weights)
        return heads, {"pairs": float(len(first)), "temperature": 1.0}

    def _fit_differences(
        self, differences: FloatArray, preference: FloatArray, prompt: IntArray, weights: FloatArray
    ) -> tuple[FloatArray, dict[str, float]]:
        """Return the heads of comparisons: logistic regression, or least squares with whole prompts left out."""
        if self.loss == "bradley_terry":
            return self._logistic(differences, preference, weights), {"temperature": 1.0}
        chosen = choose_penalty(differences, preference, prompt, self.l2_scale * _ALPHAS)
        heads = np.stack([solve(differences, preference, weight, chosen.alpha) for weight in weights])
        facts = {"alpha": chosen.alpha, "temperature": temperature_of(chosen.left_out, preference)}
        return np.concatenate([heads, np.zeros((len(heads), 1))], axis=1), facts

    def _logistic(self, differences: FloatArray, preference: FloatArray, weights: FloatArray) -> FloatArray:
        """Return Bradley–Terry heads, (E, p + 1), the intercept 0; a preference of 2p − 1 is p of a win, 1 − p of a loss."""
        from sklearn.linear_model import LogisticRegression

        if len(differences) == 1:  # a classifier must see both outcomes
            differences, preference = np.repeat(differences, 2, axis=0), np.repeat(preference, 2)
            weights = np.repeat(weights / 2.0, 2, axis=1)
        # every second pair is shown the other way round, so that wins and losses alternate
        turn = np.where(np.arange(len(preference)) % 2, -1.0, 1.0) * np.where(preference < 0, -1.0, 1.0)
        won = (1.0 + turn * preference) / 2.0
        rows, outcome = np.tile(turn[:, None] * differences, (2, 1)), np.repeat([True, False], len(won))
        share = np.concatenate([won, 1.0 - won])
        kept = share > 0
        model = LogisticRegression(C=1.0 / self.l2_scale, fit_intercept=False, max_iter=1000)
        heads = [
            model.fit(rows[kept], outcome[kept], sample_weight=(np.tile(weight, 2) * share)[kept]).coef_[0]
            for weight in weights
        ]
        return np.concatenate([np.stack(heads), np.zeros((len(heads), 1))], axis=1)


def _numbered(tuples: Examples) -> IntArray:
    return group_ids([r.prompt_id for r in tuples.responses])


def _save(
    context: FitContext, standard: _Standard, heads: FloatArray, temperature: float, *, level: float, spread: float
) -> dict[str, float]:
    """Save heads of standardised scores, (E, p + 1) with the intercept last, in the oracle's unit."""
    from safetensors.numpy import save_file

    saved = {
        "coefficients": heads[:, :-1] * standard.factor * spread,
        "intercepts": heads[:, -1] * spread + level,
        "centre": standard.centre,
        "temperature": np.array([temperature * spread]),
    }
    save_file({name: np.ascontiguousarray(value) for name, value in saved.items()}, context.folder / _WEIGHTS)
    return {"temperature": temperature * spread}
