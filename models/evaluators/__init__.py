"""Proxy reward models: learn from bought labels, score the rest of the pool."""
