"""Extension point: rules that choose which two responses of a prompt to compare, one kind per file."""
