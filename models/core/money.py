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

    def cost(self, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """Return the price of one call, in micro-dollars, rounded up. `input_tokens` include the cached ones."""
        cached = self.input if self.cached is None else self.cached
        exact = (input_tokens - cached_tokens) * self.input + cached_tokens * cached + output_tokens * self.output
        return -(-exact // MICRO)

    def most(self, *, input_tokens: int, output_tokens: int) -> int:
        """Return the most that one call may cost: its input is cached where that is dearer."""
        dearer = self.cached is not None and self.cached > self.input
        cached = input_tokens if dearer else 0
        return self.cost(input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=cached)
