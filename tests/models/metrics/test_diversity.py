"""How varied texts are, on texts whose variety is known."""

import numpy as np
import pytest

from models.metrics.diversity import apart, distinct_bigrams


def test_a_policy_that_repeats_itself_is_not_varied() -> None:
    prompt = np.array([0, 0, 1, 1])
    assert apart(["a fine film", "a fine film", "so dull", "so dull"], prompt).mean == 0.0
    assert apart(["a fine film", "so dull", "warm", "cold"], prompt).mean == 1.0
    assert apart(["a b c", "a b d", "x y", "x y"], prompt).mean == pytest.approx((1 - 1 / 3) / 2)


def test_one_answer_to_a_prompt_says_nothing_of_variety() -> None:
    assert np.isnan(apart(["a", "b"], np.array([0, 1])).mean)


def test_texts_without_words_are_alike() -> None:
    assert apart(["", ""], np.array([0, 0])).mean == 0.0


def test_distinct_pairs_are_counted_over_as_many_words() -> None:
    assert distinct_bigrams(["a b a b"], 4) == pytest.approx(2 / 3)
    assert distinct_bigrams(["a b c d", "a b"], 4) == 1.0, "what is beyond is not counted"
    assert distinct_bigrams(["a b c d", "a b"], 6) == pytest.approx(3 / 4)
    assert np.isnan(distinct_bigrams(["a"], 5))
