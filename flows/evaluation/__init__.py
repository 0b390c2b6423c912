"""What a finished policy and evaluator are measured by: held-out prompts, AlpacaEval 2, RewardBench."""
