"""Query strategies: which tuples of the pool to spend the expert on."""
