"""Audit of what a run has spent: three records of it, side by side."""

from models.core.registry import Frozen


class BudgetAudit(Frozen):
    """What an arm has spent, evaluation included, as each record has it: micro-dollars, real or virtual.

    `ledger` is what its accounts were charged, and `paid` the part of it that was not owned already when they were opened;
    `replies` is the sum over the labels it holds, `lost` what calls without a reply may have cost, `mlflow` what its
    run says. They `agree` where ledger = replies + lost = MLflow.
    """

    ledger: int
    paid: int
    replies: int
    lost: int
    mlflow: int
    agree: bool
