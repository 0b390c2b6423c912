"""Purses of a run, of a sweep and of the lab: their names and caps, and what is left of them before anything is spent."""

from flows.config.experiment import Experiment
from flows.config.loading import read
from flows.config.sweep import Sweep
from models.core.errors import ConfigError
from models.core.money import dollars
from models.core.registry import digest_of
from models.ledger.purses import Purse, look_into
from tasks.engine.settings import settings


def run_purse(experiment: Experiment) -> Purse:
    """Return what a run pays from, however often it is run again: its labels' cap and its evaluation's together."""
    cap = experiment.labelling.max_micro_usd + experiment.evaluation.max_micro_usd
    return Purse(name=f"run {experiment.digest()}", micro_usd=cap)


def check_left(purse: Purse, expected: int) -> tuple[str, ...]:
    """Return what is left of a purse, if anything has been paid from it, and of the lab's budget, in words.

    Raises ConfigError if what is expected does not fit into the lab's budget: not for what has begun already, of which
    nobody knows how much is in the ledger; the purse itself holds it to the cap.
    """
    paid, lab = look_into(settings().ledger_url, purse.name, settings().lab_budget)
    if lab is not None and expected > lab and not paid:
        raise ConfigError(
            f"{dollars(expected)} are expected to be paid, and NINEFOLD_BUDGET={settings().budget!r} has {dollars(lab)} "
            "left: raise it, wait for the next period, or ask less"
        )
    words = [f"{dollars(max(purse.micro_usd - paid, 0))} of it left"] if paid else []
    if lab is not None:
        words.append(f"NINEFOLD_BUDGET ({settings().budget}) has {dollars(lab)} left")
    return tuple(words)


def sweep_purse(sweep: Sweep) -> Purse:
    """Return what all arms of a sweep pay from: the same one while its arms are the same, whatever its cap."""
    what = sweep.model_dump(mode="json", exclude={"base", "max_micro_usd"})
    return Purse(
        name=f"sweep {sweep.name} {digest_of([what, read(Experiment, sweep.base)])}", micro_usd=sweep.max_micro_usd
    )
