"""Extension point: strategies that choose which responses the oracle labels, one kind per file."""
