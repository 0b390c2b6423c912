"""Money, in integer micro-dollars: with floats, $0.30 bought two labels at $0.10."""

from decimal import Decimal
from typing import Annotated

from pydantic import Field

MicroUsd = Annotated[int, Field(ge=0, description="micro-dollars: 1_000_000 is one dollar")]

MICRO = 1_000_000


def dollars(micro_usd: int) -> str:
    """Write micro-dollars as dollars, exactly: 4_800 → "$0.0048", 1_500_000 → "$1.50"."""
    exact = f"{Decimal(micro_usd) / MICRO:f}"
    whole, _, fraction = exact.partition(".")
    return f"${whole}.{fraction.ljust(2, '0')}"
