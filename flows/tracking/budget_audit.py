"""Audit of the budget: the ledger, MLflow and the recorded replies must agree to the micro-dollar."""

from dataclasses import dataclass

from flows.tracking.run import RunTracker
from models.core.data import Label
from models.ledger.ledger import Ledger
from tasks.engine.settings import settings
from tasks.engine.store import store


@dataclass(frozen=True)
class Books:
    """What an arm has spent, evaluation included, as each book has it: micro-dollars, real or virtual.

    `ledger` is what its accounts were charged, and `paid` the part of it that was not owned already when they were opened;
    `replies` is the sum over the labels it holds, `lost` what calls without a reply may have cost, `mlflow` what its
    run says.
    """

    ledger: int
    paid: int
    replies: int
    lost: int
    mlflow: int

    @property
    def agree(self) -> bool:
        """Whether ledger = replies + lost = MLflow."""
        return self.ledger == self.replies + self.lost == self.mlflow


def reconcile(arm: RunTracker) -> Books:
    """Read every book anew; the arm's totals must have been logged before."""
    import mlflow

    ledger, bought = Ledger(settings().ledger_url), [*arm.purchases, *arm.measurements]
    spent = [ledger.spent(labels.account) for labels in bought]
    logged = mlflow.MlflowClient().get_run(arm.run_id).data.metrics
    return Books(
        ledger=sum(account.micro_usd for account in spent),
        paid=sum(account.bought_micro_usd for account in spent),
        replies=sum(label.micro_usd for labels in bought for label in store().rows(labels.ref, Label)),
        lost=sum(account.lost_micro_usd for account in spent),
        mlflow=int(logged["micro_usd"] + logged["evaluation_micro_usd"]),
    )
