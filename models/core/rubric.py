"""Rubrics: the judging prompt shown to evaluators and LLM judges, and the strict parser of its answers."""

import re
from typing import Literal, NamedTuple, get_args

from pydantic import Field

from models.core.errors import ConfigError
from models.core.registry import Frozen

RubricName = Literal["additive", "warmth"]


class _Wording(NamedTuple):
    """A criterion in words, what a model is told to end with, and the points in short."""

    criterion: str
    ending: str
    points: str


# Self-Rewarding LM's additive five-point scheme (2401.10020), in our own words.
_ADDITIVE = _Wording(
    criterion="""Judge the response to the user's instruction. Start from zero and add one point for each of these:
- it is relevant to the instruction;
- it deals with a substantial part of what was asked;
- it answers the basic elements of the question in a useful way;
- it is written clearly, from an assistant's point of view, and well organised;
- it is tailored to this user, expert, engaging, with nothing superfluous.""",
    ending='Justify the total in a sentence or two, then end with the line "Score: <total>".',
    points="relevance to the instruction, how much of it is dealt with, usefulness, clarity, fit for the user",
)

_WARMTH = _Wording(
    criterion="How warmly does this film critic write? 0 is scathing, 5 is enthusiastic.",
    ending='End with the line "Score: <total>".',
    points="warmth",
)

_WORDINGS: dict[RubricName, _Wording] = {"additive": _ADDITIVE, "warmth": _WARMTH}

LEVELS = 6  # the totals 0 … 5

# The line "Score: 4", with what models put around it: Markdown, brackets, a decimal point, a maximum. What repeats takes all
# that it can and gives nothing back: a reply of a thousand spaces is read in no time.
MARKS = r"[*_`\t ]*+"
SCORE_LINE = re.compile(
    rf"^[#*_`\t ]*+score{MARKS}[:=]{MARKS}[<\[({{]*+{MARKS}([0-5])(?:\.0++)?+{MARKS}[>\])}}]*+{MARKS}"
    rf"(?:(?:/|out of)[\t ]*+5(?:\.0++)?+)?+{MARKS}\.?+{MARKS}\r?$",
    re.IGNORECASE | re.MULTILINE,
)


class Rubric(Frozen):
    """A criterion: what the oracle and the evaluator are asked to judge."""

    name: RubricName = Field("additive", description="The criterion by which responses are judged.")

    @classmethod
    def every(cls) -> "list[Rubric]":
        """Return every criterion there is."""
        return [cls(name=name) for name in get_args(RubricName)]

    def render(self, prompt: str, response: str) -> str:
        """Return the evaluation prompt of the tuple (x, y): rubric + instruction + response."""
        wording = _WORDINGS[self.name]
        return f"{wording.criterion}\n{wording.ending}\n\nInstruction: {prompt}\n\nResponse: {response}"

    def render_pair(self, prompt: str, first: str, second: str) -> str:
        """Return the question which of two responses is better by this criterion."""
        return (
            f"Which of two responses to the user's instruction is better? Compare their {_WORDINGS[self.name].points}.\n"
            'Justify it in a sentence or two, then end with the line "Better: A", "Better: B" or "Better: tie".\n\n'
            f"Instruction: {prompt}\n\nResponse A: {first}\n\nResponse B: {second}"
        )

    def guide(self, query_type: str) -> str:
        """Return the criterion as people are told it: of one response, or of a pair."""
        wording = _WORDINGS[self.name]
        return (
            wording.criterion
            if query_type == "pointwise"
            else f"Which response is better? Compare their {wording.points}."
        )

    def answer(self, level: int, justification: str = "") -> str:
        """Return the target text that a generative evaluator learns: the justification, then the score line."""
        if not 0 <= level < LEVELS:
            raise ConfigError(f"level must be in 0…{LEVELS - 1}, got {level}")
        return f"{justification.strip()}\nScore: {level}".lstrip()


def parse_score(text: str) -> int | None:
    """Return the total in the only score line of a judgement; None if there is none or they disagree.

    None means quarantine: never a tie, a zero or a guess.
    """
    totals = {int(match) for match in SCORE_LINE.findall(text)}
    return totals.pop() if len(totals) == 1 else None
