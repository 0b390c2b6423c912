"""Extension point: vectors of responses, one kind per file."""
