"""Audit of the budget: the ledger, MLflow and the recorded replies must agree to the micro-dollar."""

from flows.tracking.run import RunTracker
from models.core.data import Label
from models.ledger.audit import BudgetAudit
from tasks.engine.ledgers import open_ledger
from tasks.engine.store import store


def audit_budget(arm: RunTracker) -> BudgetAudit:
    """Read every record of an arm's spending anew; its totals must have been logged to MLflow before."""
    import mlflow

    ledger, bought = open_ledger(), [*arm.purchases, *arm.measurements]
    spent = [ledger.spent(labels.account) for labels in bought]
    charged, lost = sum(account.micro_usd for account in spent), sum(account.lost_micro_usd for account in spent)
    replies = sum(label.micro_usd for labels in bought for label in store().rows(labels.ref, Label))
    metrics = mlflow.MlflowClient().get_run(arm.run_id).data.metrics
    logged = int(metrics["micro_usd"] + metrics["evaluation_micro_usd"])
    return BudgetAudit(
        ledger=charged,
        paid=sum(account.bought_micro_usd for account in spent),
        replies=replies,
        lost=lost,
        mlflow=logged,
        agree=charged == replies + lost == logged,
    )
