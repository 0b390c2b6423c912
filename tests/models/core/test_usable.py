"""What of a policy's responses can be used, and the bound that stops before anything is bought of the others."""

import pytest

from models.core.data import Response
from models.core.errors import UnusableOutput
from models.core.usable import is_readable, require_responses, response_shares, same_score


def written(*texts: str, tokens: int = 5, samples: int = 2) -> list[Response]:
    return [
        Response(str(n), f"p{n // samples}", "x", n % samples, text, tokens, -1.0, False)
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("text", "readable"),
    [
        ("Yes.", True),
        ("7", True),
        ("好的", True),
        ("résumé\twith a tab\nand a line", True),
        ("a long text with one broken \N{REPLACEMENT CHARACTER} character", True),
        ("", False),
        (" \n\t ", False),
        ("!!!!!!!!!!!!", False),
        ("\N{REPLACEMENT CHARACTER}" * 5 + "ab", False),
        ("\x00\x01\x02 a", False),
    ],
)
def test_a_text_is_readable_if_it_says_something(text: str, readable: bool) -> None:
    assert is_readable(text) == readable


def test_shares_are_counted_over_all_responses() -> None:
    responses = [*written("one", "one", "", "!!"), *written("a", "b", tokens=8)]
    found = response_shares(responses, max_new_tokens=8)
    assert found.empty == 1 / 6
    assert found.readable == 4 / 6
    assert found.finished == 4 / 6
    assert found.distinct == 5 / 6, "of two that are the same one is counted; the prompts p0 of both are one prompt"


def test_too_few_that_can_be_read_are_refused_with_the_beginning_of_one_and_the_fields() -> None:
    texts = ["fine", "good", "!" * 500, ""]
    require_responses(written(*texts), least=0.5, samples=2)
    with pytest.raises(UnusableOutput) as refused:
        require_responses(written(*texts), least=0.51, samples=2)
    told = str(refused.value)
    assert told.startswith("2 of 4 responses can be read, and generation.least_usable asks for 51%. Another one: '!!!!")
    assert "…" in told
    assert len(told) < 400
    assert "policy.template" in told


def test_prompts_whose_responses_are_all_the_same_give_no_preference() -> None:
    texts = ["same", "same", "also", "also", "one", "two"]
    require_responses(written(*texts), least=1 / 3, samples=2)
    with pytest.raises(UnusableOutput, match=r"1 of 3 prompts have two responses that differ.*generation\.temperature"):
        require_responses(written(*texts), least=0.5, samples=2)
    require_responses(written("same", "same", samples=1), least=1.0, samples=1)


def test_a_bound_of_zero_refuses_nothing() -> None:
    require_responses(written("", "", "", ""), least=0.0, samples=2)


def test_many_equal_scores_are_the_same_and_few_say_nothing() -> None:
    assert same_score([3.0] * 20) == 3.0
    assert same_score([3.0] * 19) is None
    assert same_score([3.0] * 30 + [2.0]) is None
