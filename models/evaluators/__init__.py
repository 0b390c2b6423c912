"""Extension point: proxy reward models, which learn from labels and score other responses, one kind per file."""
