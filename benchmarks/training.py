"""How fast SFT, DPO and evaluator training are beside TRL's own defaults: same model, rows, seed and steps, in one run.

    python benchmarks/training.py                  # ten minutes on two cores
    python benchmarks/training.py --words 60       # longer rows

"defaults" is TRL's trainer with what the recipe says (rate, schedule, batch, LoRA) and nothing else; "plain" has this
project's arguments too (no recomputation of activations, no autocast); "ours" is the shipped training. Tokens are those of
prompts and responses, without pads. Medians of the repetitions, which take turns. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.core.data import Demonstration, Pair, Response
from models.core.rubric import Rubric
from models.evaluators import reward_head
from models.evaluators.base import Examples, FitContext
from models.evaluators.reward_head import RewardHead
from models.policies.checkpoint import Checkpoint
from models.policies.language_model import LanguageModel
from models.policies.resolve import PACKAGED, locate
from models.sources.movie_reviews import MovieReviews
from models.training import dpo, sft
from models.training.config import TrainingConfig
from models.training.cpu_kernels import use_cpu_kernels
from models.training.dpo import DPO, reference_logprob, train_dpo
from models.training.sft import SFT, train_sft
from models.training.trainer import trainer_kwargs

PATCHED = (dpo, sft, reward_head)  # where a training takes its arguments and its kernels from
TRL_DECIDES = ("activation_checkpointing", "bf16", "dataloader_pin_memory")
KINDS, WAYS = ("sft", "dpo", "evaluator"), ("defaults", "plain", "ours")


def main() -> None:
    """Train each in turn and print tokens per second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="demonstrations, or preference pairs")
    parser.add_argument("--words", type=int, default=16, help="words of a response, about")
    parser.add_argument("--repetitions", type=int, default=3)
    given = parser.parse_args()
    shown = demonstrations(given.rows, given.words)
    start = Checkpoint(locate(PACKAGED).source, (), "bfloat16", "plain")
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    losses: dict[tuple[str, str], float] = {}
    turns = [(kind, way) for _ in range(given.repetitions) for kind in KINDS for way in WAYS]
    for kind, way in tqdm(turns, desc="trainings"):
        facts = trained(kind, way, start, shown)
        seconds[kind, way].append(facts["train_runtime"])
        losses[kind, way] = facts["train_loss"]
    tokens = counted(start.load_copy(), shown)
    found: dict[str, Any] = {}
    for kind in KINDS:
        speed = {way: tokens[kind] / statistics.median(seconds[kind, way]) for way in WAYS}
        found[kind] = {
            "tokens": tokens[kind],
            "tokens_per_second": {way: round(value) for way, value in speed.items()},
            "ratio": round(speed["ours"] / speed["defaults"], 2),
            "ratio_to_plain": round(speed["ours"] / speed["plain"], 2),
            "loss": {way: round(losses[kind, way], 4) for way in WAYS},
        }
        print(f"{kind:10} {found[kind]}")
    print(json.dumps(found))


def trained(kind: str, way: str, start: Checkpoint, shown: list[Demonstration]) -> dict[str, float]:
    """Return what a training reports; `train_runtime` is the seconds of its steps."""
    with ExitStack() as stack:
        for module in PATCHED if way != "ours" else ():
            stack.enter_context(patch.object(module, "use_cpu_kernels", as_it_comes))
            if way == "defaults":
                stack.enter_context(patch.object(module, "trainer_kwargs", defaults))
        return TRAININGS[kind](start, shown, Path(stack.enter_context(tempfile.TemporaryDirectory())))


def as_it_comes(trainer: Any) -> None:  # noqa: ANN401
    """Leave TRL's trainer as it is: DPO's asks its reference in every step."""
    trainer.precompute_ref_logps = False


def defaults(schedule: TrainingConfig, seed: int, rows: int) -> dict[str, Any]:
    """Return the arguments without those that TRL has a default for and the recipe says nothing of."""
    return {name: value for name, value in trainer_kwargs(schedule, seed, rows).items() if name not in TRL_DECIDES}


def _sft(start: Checkpoint, shown: list[Demonstration], folder: Path) -> dict[str, float]:
    return train_sft(start.load_copy(), shown, SFT(), folder=folder, seed=0)


def _dpo(start: Checkpoint, shown: list[Demonstration], folder: Path) -> dict[str, float]:
    model, pairs, started = start.load_cached(), pairs_of(shown), time.monotonic()
    ours = vars(dpo)["use_cpu_kernels"] is use_cpu_kernels
    reference = reference_logprob(model, pairs) if ours else np.zeros((len(pairs), 2), np.float32)
    took = time.monotonic() - started
    facts = train_dpo(start.load_copy(), pairs, reference, DPO(), folder=folder, seed=0)
    return facts | {"train_runtime": facts["train_runtime"] + took}


def _evaluator(start: Checkpoint, shown: list[Demonstration], folder: Path) -> dict[str, float]:
    pairs = pairs_of(shown)
    better, worse = (
        Examples(
            [
                Response(f"{side}{p.prompt_id}", p.prompt_id, p.prompt, side, (p.chosen, p.rejected)[side], 1, 0.0)
                for p in pairs
            ]
        )
        for side in (0, 1)
    )
    context = FitContext(start, Rubric(), folder, seed=0)
    return RewardHead().fit_pairs(better, worse, np.ones(len(pairs)), context)


TRAININGS = {"sft": _sft, "dpo": _dpo, "evaluator": _evaluator}


def demonstrations(rows: int, words: int) -> list[Demonstration]:
    """Return reviews continued from their first words, one review after another up to the length."""
    seed = MovieReviews(pool=1, held_out=1).load().demonstrations
    text = " ".join(d.response for d in seed).split()
    begins = [row * words % (len(text) - words) for row in range(rows)]
    return [
        Demonstration(seed[row % len(seed)].prompt, " ".join(text[begin : begin + words - row % 4]))
        for row, begin in enumerate(begins)
    ]


def pairs_of(shown: list[Demonstration]) -> list[Pair]:
    """Return each demonstration against the next one's answer."""
    others = shown[1:] + shown[:1]
    return [
        Pair(str(n), d.prompt, d.response, o.response, 1.0, 0.0, "proxy")
        for n, (d, o) in enumerate(zip(shown, others, strict=True))
    ]


def counted(model: LanguageModel, shown: list[Demonstration]) -> dict[str, int]:
    """Return the tokens that each training reads."""
    one = [len(model.renderer.encode(d.prompt, d.response).ids) for d in shown]
    pairs = pairs_of(shown)
    other = [len(model.renderer.encode(p.prompt, p.rejected).ids) for p in pairs]
    epochs = round(RewardHead().training.epochs)
    return {"sft": sum(one), "dpo": sum(one) + sum(other), "evaluator": epochs * (sum(one) + sum(other))}


if __name__ == "__main__":
    main()
