"""Pair rules: which two responses of a prompt to compare."""
