"""Synthetic pools with known utility, in the paper's regimes (2407.02119): regret is exact."""

from typing import Literal, NamedTuple

import numpy as np

from models.core.arrays import FloatArray
from models.core.data import Response
from models.studies.recorded import Recording

Regime = Literal["on_policy", "off_policy", "imbalanced"]
REGIMES: tuple[Regime, ...] = ("on_policy", "off_policy", "imbalanced")

_DIMENSIONS = 6
_CLUSTERS = 12
_WAVES = 96
_NOISE = 0.5
_COMMON = 0.85  # the share of an imbalanced pool that one cluster takes


class World(NamedTuple):
    """What is labelled with noise, and what is judged without."""

    pool: Recording
    held_out: Recording


def world(regime: Regime, seed: int, *, prompts: int = 150, samples: int = 4) -> World:
    """Return a pool and held-out prompts of a smooth non-linear utility over twelve kinds of prompt.

    Held-out prompts are of every kind alike, their responses the policy's own. The pool is drawn the same way
    (`on_policy`), its responses by another policy, shifted and narrower (`off_policy`), or mostly of one kind
    (`imbalanced`).
    """
    rng = np.random.default_rng([seed, 271])
    kinds = rng.normal(size=(_CLUSTERS, _DIMENSIONS)) * 2.0
    waves, phases = rng.normal(size=(_DIMENSIONS, _WAVES)) * 0.5, rng.uniform(0, 2 * np.pi, _WAVES)
    weights = rng.normal(size=_WAVES)

    def draw(share: FloatArray, shift: FloatArray, width: float, noise: float) -> Recording:
        kind = rng.choice(_CLUSTERS, size=prompts, p=share)
        prompt = np.repeat(np.arange(prompts), samples)
        x = kinds[kind][prompt] + shift + width * rng.normal(size=(len(prompt), _DIMENSIONS))
        features = np.cos(x @ waves + phases) * np.sqrt(2.0 / _WAVES)
        scores = features @ weights + noise * rng.normal(size=len(prompt))
        vectors = features.astype(np.float32)
        instruction = kinds[kind][prompt].astype(np.float32)
        return Recording(
            responses=[
                Response(f"t{n:05}", f"p{p}", f"prompt {p}", 0, "response", 0, 0.0) for n, p in enumerate(prompt)
            ],
            prompt=prompt,
            scores=scores,
            micro_usd=np.full(len(prompt), 10_000),
            vectors={"response": vectors, "evaluation": vectors, "instruction": instruction},
        )

    even = np.full(_CLUSTERS, 1 / _CLUSTERS)
    crowded = np.array([_COMMON, *[(1 - _COMMON) / (_CLUSTERS - 1)] * (_CLUSTERS - 1)])
    away = rng.normal(size=_DIMENSIONS)
    away *= 2.0 / np.linalg.norm(away)
    none = np.zeros(_DIMENSIONS)
    pools: dict[Regime, tuple[FloatArray, FloatArray, float]] = {
        "on_policy": (even, none, 1.0),
        "off_policy": (even, away, 0.5),
        "imbalanced": (crowded, none, 1.0),
    }
    return World(draw(*pools[regime], noise=_NOISE), draw(even, none, 1.0, noise=0.0))
