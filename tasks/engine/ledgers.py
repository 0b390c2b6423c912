"""The ledger of this installation."""

from models.ledger.ledger import Ledger
from tasks.engine.settings import settings


def open_ledger() -> Ledger:
    """Open the ledger that the settings name. What its database does not take is kept in this home. Raises as Ledger.

    What is bought through it is charged to the lab's budget, if there is one.
    """
    return Ledger(settings().ledger_url, journal=settings().journal, budget=settings().lab_budget)
