"""MLflow: runs, links and lookup; the audit of labels bought against the budget."""
