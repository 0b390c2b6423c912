"""One contract for every oracle, and the gold oracle against human ratings it has not seen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from models.core.money import Prices
from models.core.registry import plugins_of
from models.core.rubric import Rubric
from models.oracles import gold
from models.oracles.alpaca_eval import AlpacaEval
from models.oracles.base import Oracle, PairOracle, RetryableError, Verdict, canonical_pair
from models.oracles.chat_client import Endpoint
from models.oracles.gold import Gold
from models.oracles.human import Human
from models.oracles.llm_judge import LLMJudge
from models.oracles.llm_pairwise_judge import LLMPairwiseJudge
from models.oracles.noisy import Noisy
from models.oracles.pairwise_from_scores import PairwiseFromScores
from models.oracles.replay import Replay
from models.oracles.reward_model import RewardModel
from models.sources.movie_reviews import MovieReviews, snippets
from ninefold.testing import check_oracle
from tests.support.fake_judge import LoopbackJudge


def table(folder: Path, *, label: str = "0.7") -> Path:
    path = folder / "labels.jsonl"
    path.write_text(f'{{"prompt": "the film is", "response": "a delight", "label": {label}, "usd": 0.02}}\n')
    return path


def reference(folder: Path) -> Path:
    path = folder / "reference.json"
    path.write_text('[{"instruction": "the film is", "output": "a mess"}]')
    return path


def oracles(folder: Path, url: str = "http://127.0.0.1:1/v1") -> list[Oracle]:
    replay = Replay(path=table(folder), price_column="usd")
    model = Endpoint(model="judge", base_url=url, prices=Prices(input=150_000, output=600_000))
    return [
        Gold(),
        replay,
        Noisy(inner=replay, label_noise=0.5),
        PairwiseFromScores(inner=Gold(), temperature=0.5),
        LLMJudge(endpoint=model),
        LLMPairwiseJudge(endpoint=model),
        AlpacaEval(endpoint=model, reference=reference(folder)),
    ]


@pytest.fixture(scope="module")
def judge_server() -> Iterator[LoopbackJudge]:
    with LoopbackJudge() as server:
        yield server


def question(oracle: Oracle) -> tuple[str, str]:
    return "the film is", canonical_pair("a delight", "a mess")[0] if oracle.query_type == "pairwise" else "a delight"


def test_the_contract_covers_every_registered_oracle(tmp_path: Path) -> None:
    """The reward model's own suite is test_reward_model.py: it needs a model on disk; people's is test_people.py."""
    registered = {kind for kind in plugins_of(Oracle) if kind.__module__.startswith("models.")}
    assert {type(oracle) for oracle in oracles(tmp_path)} | {RewardModel, Human} == registered


@pytest.mark.parametrize("number", range(7))
def test_every_oracle_keeps_the_contract(
    tmp_path: Path, number: int, judge_server: LoopbackJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    oracle = oracles(tmp_path, judge_server.url)[number]
    check_oracle(oracle)
    assert oracle.fingerprint() == oracles(tmp_path, judge_server.url)[number].fingerprint()


def test_a_table_with_other_bytes_is_another_oracle_and_its_place_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = Replay(path=table(tmp_path / "a")).fingerprint()
    assert Replay(path=table(tmp_path / "b")).fingerprint() == first
    assert Replay(path=table(tmp_path / "b", label="0.8")).fingerprint() != first


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="label table .*nowhere.csv does not exist: set labelling.oracle.path"):
        Replay(path=tmp_path / "nowhere.csv").check()
    with pytest.raises(ValueError, match=r"has no column \['score'\]"):
        Replay(path=table(tmp_path), label_column="score").check()


def test_the_gold_oracle_agrees_with_people_it_was_not_fitted_on() -> None:
    unseen = [*snippets("pool"), *snippets("held_out")]
    predicted = gold.predict([s.text for s in unseen])
    assert np.corrcoef(predicted, [s.rating for s in unseen])[0, 1] > 0.70


def test_the_snippets_that_fit_the_gold_oracle_are_in_no_other_split() -> None:
    fitted = {s.text for s in snippets("oracle")}
    starts = {" ".join(s.text.split()[:4]) for s in snippets("oracle")}
    prompts = MovieReviews(demonstrations=400, pool=400, held_out=90).load()
    assert not starts & {p.text for p in [*prompts.pool, *prompts.held_out]}
    assert not fitted & {f"{d.prompt} {d.response}" for d in prompts.demonstrations}


def test_recorded_probabilities_become_logits_and_missing_prices_the_median(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,response,label,usd\nx,a,0.75,0.01\nx,b,0,0.03\nx,c,1,\n")
    frame = Replay(path=path, scale="logit", price_column="usd").frame()
    assert frame.score.tolist() == pytest.approx([np.log(3), -16.118, 16.118], abs=1e-3)
    assert frame.micro_usd.tolist() == [10_000, 30_000, 20_000]
    path.write_text("prompt,response,label\nx,a,3\n")
    with pytest.raises(ValueError, match="holds 3, which is no probability: set labelling.oracle.scale to as_recorded"):
        Replay(path=path, scale="logit").frame()


def test_a_table_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt,response,label,usd\nx,None,0.5,\nx,42,0.25,\nx,42,0.75,\n")
    frame = Replay(path=path, price_column="usd", micro_usd=7).frame()
    assert frame.response.tolist() == ["None", "42"]
    assert frame.score.tolist() == [0.5, 0.25], (
        "the first judgement of a tuple counts, for the study and the oracle alike"
    )
    assert frame.micro_usd.tolist() == [7, 7]
    assert Replay(path=path, price_column="usd").judge("x", "42", Rubric()).score == 0.25
    path.write_text("prompt,response,label\nx,a,0.5\nx,b,\n")
    with pytest.raises(ValueError, match="has no label for prompt 'x' with response 'b'"):
        Replay(path=path).frame()


def test_a_comparison_is_the_same_question_either_way_round() -> None:
    oracle, asked = PairwiseFromScores(inner=Gold(micro_usd=7)), Rubric()
    text, sign = canonical_pair("a mess", "a delight")
    assert (text, -sign) == canonical_pair("a delight", "a mess")
    assert oracle.compare("the film is", "a delight", "a mess", asked).score == 1
    assert oracle.compare("the film is", "a mess", "a delight", asked).score == -1
    assert oracle.compare("the film is", "a mess", "a mess", asked).score == 0
    found = oracle.judge("the film is", text, asked)
    assert sign * found.score == -1, "the mess, asked about first, loses"
    assert found.micro_usd == oracle.max_cost("the film is", text) == 14


def test_a_soft_comparison_is_bradley_terry() -> None:
    scores = [Gold().judge("the film is", text, Rubric()).score for text in ("a delight", "a mess")]
    found = PairwiseFromScores(inner=Gold(), temperature=2.0).compare("the film is", "a delight", "a mess", Rubric())
    assert (1 + found.score) / 2 == pytest.approx(1 / (1 + np.exp(-(scores[0] - scores[1]) / 2.0)))


def test_a_failure_after_the_first_score_was_paid_for_is_not_called_unpaid() -> None:
    class Second(Gold):
        kind: Literal["test/second"] = "test/second"  # type: ignore[assignment]

        def judge(self, prompt: str, response: str, rubric: Rubric) -> Verdict:
            if response == "a mess":
                raise RetryableError("refused")
            return super().judge(prompt, response, rubric)

    oracle = PairwiseFromScores.model_construct(inner=Second(), temperature=0.0)
    with pytest.raises(RuntimeError, match="scored and paid for, the other failed: refused"):
        oracle.compare("the film is", "a delight", "a mess", Rubric())
    with pytest.raises(RetryableError):
        oracle.compare("the film is", "a mess", "a delight", Rubric())


def test_comparing_wants_a_pointwise_oracle() -> None:
    twice = PairwiseFromScores(inner=PairwiseFromScores(inner=Gold()))
    assert isinstance(twice.inner, PairOracle)
    with pytest.raises(ValueError, match="needs a pointwise oracle, and 'pairwise_from_scores' compares already"):
        twice.check()
    assert Noisy(inner=PairwiseFromScores(inner=Gold())).query_type == "pairwise"
