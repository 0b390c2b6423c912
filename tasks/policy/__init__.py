"""SFT, generation, embedding, log-probabilities and alignment of a policy."""
