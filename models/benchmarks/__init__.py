"""Public benchmarks: lm-evaluation-harness, AlpacaEval 2, RewardBench."""
