"""The domain: values, strategies and learners. Imports neither Prefect nor MLflow."""
