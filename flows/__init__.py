"""What runs: Prefect flows that chain the stages of tasks/, and what plans, shows and serves them."""
