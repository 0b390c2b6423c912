"""Units of work: one cached Prefect task per file, thin over the domain."""
