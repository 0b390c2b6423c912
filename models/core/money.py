"""Money, in integer micro-dollars: with floats, $0.30 bought two labels at $0.10."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, NamedTuple

from pydantic import Field

from models.core.registry import Frozen

MicroUsd = Annotated[int, Field(ge=0, description="Micro-dollars: 1_000_000 is one dollar.")]

MICRO = 1_000_000
NO_CAP = 2**62  # of tokens, where none is set


class Amount(NamedTuple):
    """What a query may cost, or has cost: micro-dollars, and tokens (0 where they are not counted)."""

    micro_usd: int
    tokens: int

    def plus(self, other: "Amount") -> "Amount":
        """Return the sum."""
        return Amount(self.micro_usd + other.micro_usd, self.tokens + other.tokens)

    @property
    def negative(self) -> "Amount":
        """The amount as given back."""
        return Amount(-self.micro_usd, -self.tokens)


def total(amounts: Iterable[Amount]) -> Amount:
    """Return the sum of amounts."""
    money, tokens = 0, 0
    for amount in amounts:
        money, tokens = money + amount.micro_usd, tokens + amount.tokens
    return Amount(money, tokens)


def dollars(micro_usd: int) -> str:
    """Write micro-dollars as dollars, exactly: 4_800 → "$0.0048", 1_500_000 → "$1.50"."""
    exact = f"{Decimal(micro_usd) / MICRO:f}"
    whole, _, fraction = exact.partition(".")
    return f"${whole}.{fraction.ljust(2, '0')}"


class Prices(Frozen):
    """What a model's tokens cost, in micro-dollars per million tokens: $0.15 per million is 150_000."""

    input: MicroUsd
    output: MicroUsd
    cached: MicroUsd | None = Field(
        None, description="Price of input tokens that the server had cached; that of `input` by default."
    )

    cache_write: MicroUsd | None = Field(
        None, description="Price of input tokens that the server writes to its cache; that of `input` by default."
    )

    def cost(self, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0, cache_writes: int = 0) -> int:
        """Return the price of one call, in micro-dollars, rounded up.

        `input_tokens` include those that were read from the server's cache and those that were written to it.
        """
        cached, write = (self.input if price is None else price for price in (self.cached, self.cache_write))
        plain = input_tokens - cached_tokens - cache_writes
        exact = plain * self.input + cached_tokens * cached + cache_writes * write + output_tokens * self.output
        return -(-exact // MICRO)

    def most(self, *, input_tokens: int, output_tokens: int) -> int:
        """Return the most that one call may cost: all of its input at the dearest of the prices of input."""
        dearest = max(self.input, self.cached or 0, self.cache_write or 0)
        return -(-(input_tokens * dearest + output_tokens * self.output) // MICRO)
