"""Trainers: SFT, DPO and its relatives, reward losses, accelerate, CPU kernels."""
