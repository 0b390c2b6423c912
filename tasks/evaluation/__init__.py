"""Held-out metrics, biases, over-optimisation, AlpacaEval, RewardBench, lm-eval."""
