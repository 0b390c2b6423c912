"""The domain: selection, oracles, evaluators, policies, money and statistics. Imports neither Prefect nor MLflow."""
