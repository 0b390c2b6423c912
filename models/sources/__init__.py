"""Extension point: where prompts and demonstrations come from, one kind per file."""
