"""Back ends that sample responses from a policy."""
