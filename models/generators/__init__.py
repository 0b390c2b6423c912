"""Extension point: back ends that sample responses from a policy, one kind per file."""
