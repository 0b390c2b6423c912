"""Purses of a run, of a sweep and of the lab: their names and caps, and what is left of them before anything is spent."""

from flows.config.experiment import Experiment
from flows.config.loading import read
from flows.config.sweep import Sweep
from models.core.registry import digest_of
from models.ledger.purses import Purse


def run_purse(experiment: Experiment) -> Purse:
    """Return what a run pays from, however often it is run again: its labels' cap and its evaluation's together."""
    cap = experiment.labelling.max_micro_usd + experiment.evaluation.max_micro_usd
    return Purse(name=f"run {experiment.digest()}", micro_usd=cap)


def sweep_purse(sweep: Sweep) -> Purse:
    """Return what all arms of a sweep pay from: the same one while its arms are the same, whatever its cap."""
    what = sweep.model_dump(mode="json", exclude={"base", "max_micro_usd"})
    return Purse(
        name=f"sweep {sweep.name} {digest_of([what, read(Experiment, sweep.base)])}", micro_usd=sweep.max_micro_usd
    )
