"""The language model being trained: loading, SFT and DPO."""
