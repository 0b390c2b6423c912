"""How fast the generative evaluator scores beside a plain loop of `generate`, row by row: same model, same questions.

    python benchmarks/evaluator_scoring.py                       # four minutes on two cores
    python benchmarks/evaluator_scoring.py --rubric warmth       # a shorter common beginning

"loop" asks one question at a time and lets the model write its answer with the library's `generate`; "loop, score only" lets
it write no more than "Score: s"; "batched" and "shared" read the expected score in one pass, the first with every question
read whole, the second (what is shipped) with their common beginning read once. The last line is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.core.rubric import LEVELS, Rubric, RubricName
from models.policies import choice_scoring as next_token
from models.policies.checkpoint import Checkpoint
from models.policies.choice_scoring import choice_logprob
from models.policies.language_model import LanguageModel
from models.policies.resolve import PACKAGED, locate
from models.sources.movie_reviews import MovieReviews

ANSWER_TOKENS, SCORE_TOKENS = 64, 5


def main() -> None:
    """Score the same tuples in each way and print rows per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=192, help="tuples to score")
    parser.add_argument("--loop-rows", type=int, default=24, help="of these, by the loops")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rubric", choices=get_args(RubricName), default="additive")
    given = parser.parse_args()
    rubric = Rubric.model_validate({"name": given.rubric})
    shown = MovieReviews(demonstrations=given.rows).load().demonstrations
    questions = [rubric.render(d.prompt, d.response) for d in shown]
    policy = Checkpoint(locate(PACKAGED).source, (), "bfloat16", "plain").load_copy()
    answers = [rubric.answer(level) for level in range(LEVELS)]

    def read() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return choice_logprob(policy, questions, answers, batch_size=given.batch_size)

    def read_whole() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        with patch.object(next_token, "WORTH_SHARING", sys.maxsize):
            return read()

    few = questions[: given.loop_rows]
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "loop": (len(few), lambda: loop(policy, few, ANSWER_TOKENS)),
        "loop, score only": (len(few), lambda: loop(policy, few, SCORE_TOKENS)),
        "batched": (len(questions), read_whole),
        "shared": (len(questions), read),
    }
    loop(policy, few[:1], SCORE_TOKENS)  # warm up
    speed = {name: rows / seconds(work) for name, (rows, work) in ways.items()}
    off = np.abs(np.exp(read()) - np.exp(read_whole())).max()
    for name, rows in speed.items():
        print(f"{name:18} {rows:7.2f} rows/s")
    found = {f"ratio to {name}": round(speed["shared"] / rows, 2) for name, rows in speed.items() if name != "shared"}
    print(json.dumps({**found, "largest difference of a probability": float(off), "rubric": given.rubric}))


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def loop(policy: LanguageModel, questions: list[str], most: int) -> None:
    """Judge row by row, as it is written in a few lines."""
    import torch

    for question in tqdm(questions, desc=f"loop of {most} tokens"):
        ids = torch.tensor([policy.renderer.prompt_ids(question)], device=policy.model.device)
        with torch.inference_mode():
            policy.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=policy.tokenizer.pad_token_id,
            )


if __name__ == "__main__":
    main()
