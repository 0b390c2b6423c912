"""Extension point: who labels a response (LLM judge, people, reward model, record, simulation), one kind per file."""
