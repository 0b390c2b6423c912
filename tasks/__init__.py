"""Units of work: cached Prefect tasks, thin over models/."""
