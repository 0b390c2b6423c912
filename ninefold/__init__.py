"""Ninefold: cost-effective proxy reward models. What is named here is the public API; everything else may change.

    import ninefold

    experiment = ninefold.load("deployments/experiments/quickstart.yaml", {"labelling.queries": 64})
    print(ninefold.plan(experiment))      # spends nothing
    report = ninefold.run(experiment)     # starts Prefect and MLflow itself
    report.policy.win_rate              # Interval(mean, low, high)

Names are imported when they are first used. `ninefold.plugins` is what plugins import, `ninefold.testing` holds their
contracts.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.config.experiment import Experiment
    from flows.config.sweep import Sweep
    from models.core.errors import NinefoldError
    from models.ledger.ledger import Ledger
    from ninefold.api import compare, export, load, plan, run, sweep

    __version__: str

__all__ = [
    "Experiment",
    "Ledger",
    "NinefoldError",
    "Sweep",
    "__version__",
    "compare",
    "export",
    "load",
    "plan",
    "run",
    "sweep",
]

_WHERE = {
    "Experiment": "flows.config.experiment",
    "Ledger": "models.ledger.ledger",
    "NinefoldError": "models.core.errors",
    "Sweep": "flows.config.sweep",
    **dict.fromkeys(("compare", "export", "load", "plan", "run", "sweep"), "ninefold.api"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":
        from importlib.metadata import version

        return version("ninefold")
    if name not in _WHERE:
        raise AttributeError(f"module 'ninefold' has no attribute {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__
