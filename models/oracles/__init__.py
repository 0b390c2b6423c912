"""Experts that score a response: real ones, recorded ones and simulated ones."""
