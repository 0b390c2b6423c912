"""Experiments: compose tasks, decide, and own the MLflow run."""
