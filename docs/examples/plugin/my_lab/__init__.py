"""Plugins of my lab for Ninefold."""
