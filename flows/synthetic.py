"""Study of strategies on synthetic labels with known utility: regret per strategy and regime."""

import json
import time
from typing import Any

import numpy as np

from flows.reporting.storage import write_text, writing
from models.acquisition.bald import Bald
from models.acquisition.base import Acquisition
from models.acquisition.coreset import CoresetEFT
from models.acquisition.d_optimal import DOptimal
from models.acquisition.ensemble_variance import EnsembleVariance
from models.acquisition.hybrid import Hybrid
from models.acquisition.margin import Margin
from models.acquisition.max_herding import MaxHerding
from models.acquisition.random import Random
from models.acquisition.random_pairs import RandomPairs
from models.acquisition.typiclust import TypiClust
from models.core import progress
from models.core.arrays import FloatArray
from models.evaluators.linear import Linear
from models.metrics.intervals import paired_difference
from models.metrics.learning_curves import area
from models.studies.recorded import learning_curve
from models.studies.synthetic import REGIMES, world

BUDGETS = (24, 48, 96, 192)
STRATEGIES: dict[str, Acquisition] = {
    "random": Random(),
    "random_pairs": RandomPairs(),
    "coreset_eft": CoresetEFT(),
    "typiclust": TypiClust(),
    "max_herding": MaxHerding(),
    "ensemble_variance": EnsembleVariance(),
    "margin": Margin(),
    "bald": Bald(),
    "d_optimal": DOptimal(),
    "hybrid": Hybrid(),
}
_EVALUATOR = Linear(ensemble=8, embedding=1.0, style=0.0, length=0.0, prompt_effect=0.0)


def synthetic_study(seeds: int) -> dict[str, Any]:
    """Run the study and return its report (also written to the reports folder).

    Per regime and strategy: the mean regret over log(labels), and how much less it is than random's on the same seeds,
    with a 95 % interval.
    """
    started = time.monotonic()
    rows = []
    with progress.bar(total=len(REGIMES) * len(STRATEGIES) * seeds, desc="synthetic worlds", unit="curve") as bar:
        for regime in REGIMES:
            worlds = [world(regime, seed) for seed in range(seeds)]
            regret: dict[str, FloatArray] = {}
            for name, strategy in STRATEGIES.items():
                curves = []
                for seed, (pool, held_out) in enumerate(worlds):
                    points = learning_curve(pool, held_out, strategy, _EVALUATOR, budgets=BUDGETS, seed=seed)
                    curves.append([point.regret for point in points])
                    bar.update()
                regret[name] = np.array(curves)
                rows.append(_row(regime, name, regret))
    report = {"name": "synthetic", "seeds": seeds, "budgets": list(BUDGETS), "rows": rows}
    report["seconds"] = time.monotonic() - started
    with writing("synthetic") as folder:
        write_text(folder / "report.json", json.dumps(report, indent=2))
    return report


def headlines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return one line per regime and strategy."""
    return [(f"{row['regime']}: {row['strategy']}", _line(row)) for row in report["rows"]]


def _line(row: dict[str, Any]) -> str:
    if row["strategy"] == "random":
        return f"regret {row['regret']:.3f}"
    gain, low, high = row["gain"]
    return f"regret {row['regret']:.3f}, less than random by {gain:+.3f} [{low:+.3f}, {high:+.3f}]"


def _row(regime: str, name: str, regret: dict[str, FloatArray]) -> dict[str, Any]:
    labels = np.array(BUDGETS, dtype=np.float64)
    ours, control = area(labels, regret[name]), area(labels, regret["random"])
    return {
        "regime": regime,
        "strategy": name,
        "regret": float(ours.mean()),
        "gain": list(paired_difference(control, ours)),
        "curve": [float(value) for value in regret[name].mean(axis=0)],
    }
