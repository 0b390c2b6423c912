"""What an evaluator leans on: found where it was put in, not where it was not."""

import numpy as np
import pytest

from models.metrics.biases import as_list, format_shift, is_unformatted, longer_preferred


def test_the_longer_response_wins_as_often_as_it_was_made_to() -> None:
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(200), 2)
    length = rng.permuted(np.tile([10.0, 20.0], (200, 1)), axis=1).ravel()
    leaning = np.where(np.arange(200) < 160, 1.0, -1.0).repeat(2) * (length - 15)
    found = longer_preferred(leaning, length, prompt)
    assert found.mean == 0.8
    assert 0.5 < found.low < 0.8 < found.high
    assert longer_preferred(np.zeros(400), length, prompt).mean == 0.5, "ties count one half"
    blind = longer_preferred(rng.normal(size=400), length, prompt)
    assert blind.low < 0.5 < blind.high


def test_responses_of_one_length_say_nothing() -> None:
    assert np.isnan(longer_preferred(np.arange(4.0), np.ones(4), np.array([0, 0, 1, 1])).mean)


def test_a_format_is_worth_what_it_adds() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=100)
    found = format_shift(plain, plain + 0.3 + rng.normal(scale=0.1, size=100), spread=0.5)
    assert found.low < 0.6 < found.high
    assert found.mean == pytest.approx(0.6, abs=0.05)
    for spread in (0.0, float(np.std([0.1] * 3)), 1e-9):
        assert np.isnan(format_shift(plain, plain + spread, spread=spread).mean), "rounding is no spread"


@pytest.mark.parametrize("text", ["- one\n- two", "1. Mix.\n2. Bake.", "# Title\ntext", "so:\n```\nx\n```", "  * a"])
def test_what_is_formatted_already_is_known(text: str) -> None:
    assert not is_unformatted(text)
    assert is_unformatted("A film - a good one. It is 3. best!")


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("A fine film. It is warm! Is it?", "- **A fine film.**\n- It is warm!\n- Is it?"),
        ("  one line without an end ", "- **one line without an end**"),
        ("", ""),
        ("It is slow, e.g. the end.", "- **It is slow, e.g. the end.**"),
    ],
)
def test_a_list_has_the_same_words(text: str, listed: str) -> None:
    assert as_list(text) == listed
    assert as_list(text).replace("- ", "").replace("**", "").split() == text.split()
