"""Verdicts are parsed strictly or not at all: nothing is guessed."""

import pytest

from models.oracles.llm_judge import stated_score
from models.oracles.llm_pairwise_judge import stated_better


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"justification": "good", "score": 4}', 4),
        ('{"justification": "the \\"score\\": 2 is wrong", "score": 0}', 0),
        ('{"score": 4.0}', 4),
        ('{"score": 4.5}', None),
        ('{"score": 6.0}', None),
        ('{"score": NaN}', None),
        ('{"score": true}', None),
        ('{"score": "4"}', 4),
        ('{"score": "4 or 5"}', None),
        ('{"score": "four"}', None),
        ('```json\n{"score": 4}\n```', 4),
        ('~~~\n{"score": 4}\n~~~\n', 4),
        ('```json\n{"score": 4}\n```\nor\n```json\n{"score": 2}\n```', None),
        ('Here it is:\n```json\n{"score": 4}\n```', None),
        ('Here it is: {"score": 4}', None),
        ('<think>2? no {"score": 2}</think>\n{"score": 4}', 4),
        ('I would say 2.</think>\n\n```\n{"score": 4}\n```', 4),
        ('<think>{"score": 2}', None),
        ('{"justification": "it says </think> 2", "score": 4}', 4),
        ('{"score": 6}', None),
        ('{"score": -1}', None),
        ('{"justification": "good"', None),
        ("[4]", None),
        ("4", None),
        ("", None),
    ],
)
def test_a_json_verdict_is_parsed_strictly_or_not_at_all(text: str, score: int | None) -> None:
    found = stated_score(text, structured_output=True)
    assert (None if found is None else found.score) == score
    if found is not None:
        assert text[found.place] == str(score)


@pytest.mark.parametrize(
    ("text", "structured_output", "better"),
    [
        ('{"better": "A"}', True, 1),
        ('{"better": "tie"}', True, 0),
        ('{"better": "C"}', True, None),
        ('{"better": null}', True, None),
        ("Better: B", False, -1),
        ("Better: A\nBetter: B", False, None),
        ("A is better", False, None),
    ],
)
def test_a_stated_preference_is_parsed_strictly_or_not_at_all(
    text: str, structured_output: bool, better: int | None
) -> None:
    assert stated_better(text, structured_output=structured_output) == better
