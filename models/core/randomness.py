"""Random streams named by (seed, round, stage)."""

import zlib

import numpy as np


def stream(seed: int, round_number: int, stage: str) -> np.random.Generator:
    """Return the generator of one stage of one round: same arguments, same numbers, on every machine."""
    return np.random.default_rng([seed, round_number, zlib.crc32(stage.encode())])


def seed_of(seed: int, round_number: int, stage: str) -> int:
    """Return a 31-bit seed for a library that wants an integer (a TRL trainer)."""
    return int(stream(seed, round_number, stage).integers(2**31))
