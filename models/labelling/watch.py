"""Stop labelling early when the oracle's replies hold no verdict."""

from models.core.usable import ENOUGH, beginning
from models.oracles.base import Oracle


class ReplyWatch:
    """Counts the replies of one labelling, and says when too few hold a verdict for the rest to be worth its price.

    That is when fewer than the share `least` do, of 20 or more, or when 20 in a row do not. Nothing stops at 0.
    """

    def __init__(self, oracle: Oracle, least: float) -> None:
        self._oracle, self._least = oracle, least
        self._replies = self._usable = self._in_a_row = 0

    def note(self, raw: str, *, usable: bool) -> str:
        """Note a paid reply; return why labelling stops, "" if it does not."""
        self._replies += 1
        self._usable += usable
        self._in_a_row = 0 if usable else self._in_a_row + 1
        if usable or not self._least:
            return ""
        if self._in_a_row >= ENOUGH:
            counted = f"{self._in_a_row} replies in a row hold no verdict"
        elif self._replies >= ENOUGH and self._usable < self._least * self._replies:
            counted = f"{self._usable} of {self._replies} replies hold a verdict"
        else:
            return ""
        return f"{counted}, and labelling.least_usable asks for {self._least:.0%}. {last_unusable(self._oracle, raw)}"


def last_unusable(oracle: Oracle, raw: str) -> str:
    """Return the beginning of a reply without a verdict, the field that may help, and how its question is asked again."""
    said = oracle.unusable_reply(raw)
    told = f"The last such reply: {beginning(said.text)}" + (f" ({said.remedy})" if said.remedy else "")
    return f"{told}. Then `ninefold labels retry RUN` asks these questions again"
