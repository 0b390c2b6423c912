"""Asking oracles and people for labels, within a budget; drift and prompt injection."""
