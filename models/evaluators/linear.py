"""A linear head on frozen sentence or policy embeddings: trains in milliseconds, with an ensemble for uncertainty."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from models.embedding import View
from models.evaluators.base import Bench, Evaluator, Floats, Tuples, check_trainable

_WEIGHTS = "linear.safetensors"
_MOST_PAIRS = 8192  # 1,700 labels make 1.4 million pairs, which no memory holds as features


class Linear(Evaluator):
    """Ridge regression on the scores, or Bradley–Terry on all pairs of labelled tuples with different scores.

    Members differ by the Bayesian bootstrap (Rubin 1981): each weighs the labels by its own draw from a flat Dirichlet.
    """

    feature_view: ClassVar[View | None] = "response"

    kind: Literal["linear"] = "linear"
    loss: Literal["ridge", "bradley_terry"] = "ridge"
    ensemble: PositiveInt = 16
    strength: PositiveFloat = 1.0

    def fit(self, tuples: Tuples, scores: Floats, bench: Bench) -> dict[str, float]:  # noqa: D102
        from safetensors.numpy import save_file

        check_trainable(scores)
        features = _features(tuples)
        centre = features.mean(axis=0)
        rng = np.random.default_rng(bench.seed)
        weights = rng.dirichlet(np.ones(len(scores)), size=self.ensemble) * len(scores)
        fit = self._fit_ridge if self.loss == "ridge" else self._fit_bradley_terry
        coefficients, intercepts, facts = fit(features - centre, scores, weights, rng)
        save_file(
            {"coefficients": coefficients, "intercepts": intercepts, "centre": centre},
            bench.folder / _WEIGHTS,
        )
        return facts

    def members(self, tuples: Tuples, bench: Bench) -> Floats:  # noqa: D102
        from safetensors.numpy import load_file

        saved = load_file(bench.folder / _WEIGHTS)
        scores = saved["coefficients"] @ (_features(tuples) - saved["centre"]).T + saved["intercepts"][:, None]
        return np.asarray(scores, dtype=np.float64)

    def _fit_ridge(
        self, features: Floats, scores: Floats, weights: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, dict[str, float]]:
        from sklearn.linear_model import Ridge, RidgeCV

        del rng  # only Bradley–Terry draws

        # The penalty is chosen by exact leave-one-out error on all labels, once, then shared by the members.
        chosen = RidgeCV(alphas=self.strength * np.logspace(-2, 2, 17)).fit(features, scores)
        heads = [Ridge(alpha=chosen.alpha_).fit(features, scores, sample_weight=w) for w in weights]
        facts = {"alpha": float(chosen.alpha_), "leave_one_out_r2": _r2(scores, float(-chosen.best_score_))}
        return np.stack([h.coef_ for h in heads]), np.array([h.intercept_ for h in heads]), facts

    def _fit_bradley_terry(
        self, features: Floats, scores: Floats, weights: Floats, rng: np.random.Generator
    ) -> tuple[Floats, Floats, dict[str, float]]:
        from sklearn.linear_model import LogisticRegression

        better, worse = np.nonzero(scores[:, None] > scores[None, :])
        drawn = rng.permutation(len(better))[:_MOST_PAIRS]
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
        return np.stack(heads), np.zeros(len(heads)), {"pairs": float(len(differences))}


def _features(tuples: Tuples) -> Floats:
    if tuples.features is None:
        raise ValueError("the linear evaluator needs features of the response view")
    return np.asarray(tuples.features, dtype=np.float64)


def _r2(scores: Floats, squared_error: float) -> float:
    return 1.0 - squared_error / float(np.var(scores))
