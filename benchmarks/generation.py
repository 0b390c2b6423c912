"""How fast responses are sampled on this machine, beside the library's own ways and a bound: same model, prompts, samples.

    python benchmarks/generation.py                               # both pools, every case: an hour and a half on two cores
    python benchmarks/generation.py --pool quickstart             # eight minutes, the training of its policy with them
    python benchmarks/generation.py --pool long --prompts 32 --case ours --case bound

Pools: "quickstart" is the quickstart's, 456 prompts × 4 samples of at most 20 tokens, from a policy that is trained here as
the quickstart's is; "long" is 256 prompts × 8 samples of at most 256 tokens, the packaged model's answers in its chat
template, which end after anything from a few tokens to none of the 256.

Cases, each in a process of its own: "generate" is what Ninefold did before: transformers' `generate` over batches of
prompts of similar length, each row with its own random numbers; "ours" is the shipped back end; "continuous" is the
library's continuous batching (`generate_batch`), with draws of its own; "bound" is bare steps of the model, forward pass
with a cache and head, at as many rows, each as long as texts are on average while they are written. Tokens are those of the
responses, up to their ends. `peak_gb` is the largest resident size of the process. The last line is JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.core.data import Prompt
from models.core.randomness import stream
from models.generators.hf import Transformers
from models.policies.checkpoint import Checkpoint
from models.policies.language_model import LanguageModel
from models.policies.resolve import PACKAGED, locate
from models.sources.movie_reviews import MovieReviews
from models.training.sft import SFT, train_sft

ATTEMPTS = 16
STEPS = 24  # that the bound is measured in


class Pool(NamedTuple):
    """What is sampled: prompts, samples of each, tokens at most, rows at once."""

    prompts: int
    samples: int
    most: int
    rows: int


class Sampled(NamedTuple):
    """What a case has done, in how many seconds."""

    tokens: int
    texts: int
    seconds: float


POOLS = {"quickstart": Pool(456, 4, 20, 64), "long": Pool(256, 8, 256, 64)}
TEMPERATURE, TOP_P = 0.9, 0.9


def main() -> None:
    """Run every case in a process of its own, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=POOLS, action="append", help="by default both")
    parser.add_argument("--case", choices=CASES, action="append", help="by default all")
    parser.add_argument("--prompts", type=int, help="of the pool, the first; by default all")
    parser.add_argument("--adapter", type=Path, help="the quickstart's policy, where it is trained already")
    parser.add_argument("--here", action="store_true", help="run one case in this process")
    given = parser.parse_args()
    pools, cases = given.pool or list(POOLS), given.case or list(CASES)
    if given.here:
        print(json.dumps(measured(pools[0], cases[0], given.adapter, given.prompts)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        adapter = given.adapter
        if adapter is None and "quickstart" in pools:
            adapter = Path(scratch)
            train(adapter)
        found = {pool: compared({case: apart(pool, case, adapter, given.prompts) for case in cases}) for pool in pools}
    print(json.dumps(found))


def apart(pool: str, case: str, adapter: Path | None, prompts: int | None) -> dict[str, Any]:
    """Run one case in a process of its own."""
    command = [sys.executable, __file__, "--here", "--pool", pool, "--case", case]
    command += ["--adapter", str(adapter)] if adapter else []
    command += ["--prompts", str(prompts)] if prompts else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if done.returncode == 0 else {"failed": done.returncode}
    print(pool, case, found, flush=True)
    return found


def compared(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Add how "ours" compares, in tokens per second, with each other case that has run."""
    speed = {case: facts["tokens_per_second"] for case, facts in found.items() if "tokens_per_second" in facts}
    ours = speed.get("ours")
    others = {f"ours / {case}": round(ours / other, 2) for case, other in speed.items() if ours and case != "ours"}
    return {**found, **others}


def measured(name: str, case: str, adapter: Path | None, prompts: int | None) -> dict[str, Any]:
    """Run one case here and return what it took."""
    import torch

    pool = POOLS[name]
    source = locate(PACKAGED).source
    if name == "quickstart" and adapter is not None:
        policy = Checkpoint(source, (adapter,), "bfloat16", "plain").load_copy()
    else:
        policy = Checkpoint(source, (), "bfloat16", "chat").load_copy()
    texts = MovieReviews(pool=prompts or pool.prompts).load().pool
    with torch.inference_mode(case != "continuous"), torch.no_grad():
        try:
            done = CASES[case](policy, texts, pool)
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            if case != "continuous":  # the library's own may not run on every machine, which is a finding
                raise
            return {"reason": f"{type(error).__name__}: {error}"}
    return {
        "tokens_per_second": round(done.tokens / done.seconds, 1),
        "mean_tokens": round(done.tokens / done.texts, 1),
        "seconds": round(done.seconds, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def generate(policy: LanguageModel, prompts: list[Prompt], pool: Pool) -> Sampled:
    """Sample with the library's `generate`, a batch after the other, a row to a sample."""
    import torch

    requests = [(policy.renderer.prompt_ids(p.text), p, n) for p in prompts for n in range(pool.samples)]
    requests.sort(key=lambda request: len(request[0]))
    end, tokens, started = policy.tokenizer.eos_token_id, 0, time.monotonic()
    for begin in range(0, len(requests), pool.rows):
        batch = requests[begin : begin + pool.rows]
        width = max(len(ids) for ids, _, _ in batch)
        uniforms = np.stack([stream(0, n, f"generate {p.id}").random((pool.most, ATTEMPTS)) for _, p, n in batch])
        written = policy.model.generate(
            input_ids=torch.tensor([[end] * (width - len(ids)) + ids for ids, _, _ in batch]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _, _ in batch]),
            logits_processor=[inverse(uniforms)],
            do_sample=False,
            max_new_tokens=pool.most,
            eos_token_id=end,
            pad_token_id=end,
        )[:, width:].tolist()
        tokens += sum(row.index(end) + 1 if end in row else len(row) for row in written)
        print(f"{min(begin + pool.rows, len(requests))} of {len(requests)}", end="\r", file=sys.stderr)
    return Sampled(tokens, len(requests), time.monotonic() - started)


def inverse(uniforms: Any) -> Callable[[Any, Any], Any]:  # noqa: ANN401
    """Return what draws from the nucleus with passes over the whole vocabulary in float64."""
    import torch

    logprobs: list[Any] = []

    def drawn(_: Any, scores: Any) -> Any:  # noqa: ANN401
        raw = scores.float()
        probability = torch.softmax(raw / TEMPERATURE, dim=-1)
        cumulative = probability.double().cumsum(dim=-1)
        step = torch.as_tensor(uniforms[:, len(logprobs)])
        tokens, rows = torch.zeros(len(raw), 1, dtype=torch.long), torch.arange(len(raw))
        for attempt in range(ATTEMPTS):
            target = step[rows, attempt, None] * cumulative[rows, -1:]
            found = torch.searchsorted(cumulative[rows], target, right=True).clamp(max=raw.shape[-1] - 1)
            tokens[rows] = found
            likely = probability[rows]
            above = (likely * (likely > likely.gather(-1, found))).double().sum(dim=-1)
            rows = rows[above >= TOP_P]
            if not len(rows):
                break
        logprobs.append(raw.gather(-1, tokens).squeeze(-1) - raw.logsumexp(dim=-1))
        return torch.full_like(scores, float("-inf")).scatter(-1, tokens, 0.0)

    return drawn


def back_end(pool: Pool) -> Transformers:
    """Return the shipped back end."""
    return Transformers(batch_size=pool.rows, max_new_tokens=pool.most, temperature=TEMPERATURE, top_p=TOP_P)


def ours(policy: LanguageModel, prompts: list[Prompt], pool: Pool) -> Sampled:
    """Sample with the shipped back end."""
    started = time.monotonic()
    found = back_end(pool).sample_from(policy, prompts, samples=pool.samples, seed=0, what="ours")
    return Sampled(sum(r.tokens for r in found), len(found), time.monotonic() - started)


def continuous(policy: LanguageModel, prompts: list[Prompt], pool: Pool) -> Sampled:
    """Sample with the library's continuous batching; a prompt's samples share its keys and values."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    ids = [policy.renderer.prompt_ids(p.text) for p in prompts for _ in range(pool.samples)]
    end, started = policy.tokenizer.eos_token_id, time.monotonic()
    sampling = GenerationConfig(
        do_sample=True,
        temperature=TEMPERATURE,
        top_p=TOP_P,
        top_k=0,
        max_new_tokens=pool.most,
        eos_token_id=end,
        pad_token_id=end,
    )
    pages = max(len(one) for one in ids) + pool.most
    written = policy.model.generate_batch(
        inputs=ids,
        generation_config=sampling,
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=32,
            num_blocks=pool.rows * (pages // 32 + 2),
            max_batch_tokens=4 * pool.rows,
            max_requests_per_batch=pool.rows,
        ),
    )
    if failed := [one.error for one in written.values() if one.error]:
        raise RuntimeError(failed[0])
    tokens = sum(len(one.generated_tokens) for one in written.values())
    return Sampled(tokens, len(ids), time.monotonic() - started)


def bound(policy: LanguageModel, prompts: list[Prompt], pool: Pool) -> Sampled:
    """Step the model as it is, all rows filled at every step: nothing begins, ends or is drawn."""
    import torch
    from transformers import DynamicCache

    width = int(statistics.mean(len(policy.renderer.prompt_ids(p.text)) for p in prompts))
    width += 2 * pool.most // 5  # what the texts of both pools have written, on average over their steps
    cache, ids = DynamicCache(config=policy.model.config), torch.full((pool.rows, 1), 100)
    policy.model(input_ids=ids.expand(-1, width)[:1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(pool.rows)
    seconds = []
    for _ in range(STEPS):
        cache.crop(min(0, width - cache.get_seq_length()))
        mask = torch.ones(pool.rows, width + 1, dtype=torch.long)
        mask[::2, 0] = 0  # rows are not all as long as each other
        started = time.monotonic()
        policy.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        seconds.append(time.monotonic() - started)
    return Sampled(pool.rows * STEPS, pool.rows, statistics.median(seconds) * STEPS)


def train(folder: Path) -> None:
    """Train the quickstart's policy on its demonstrations, in a process of its own: it leaves memory behind."""
    print("training the quickstart's policy", file=sys.stderr)
    code = f"import pathlib; from benchmarks.generation import fine_tune; fine_tune(pathlib.Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def fine_tune(folder: Path) -> None:
    """Train the packaged model as the quickstart does."""
    policy = Checkpoint(locate(PACKAGED).source, (), "bfloat16", "plain").load_copy()
    recipe = SFT(learning_rate=2e-4, max_length=64)
    train_sft(policy, MovieReviews(demonstrations=320).load().demonstrations, recipe, folder=folder, seed=0)


CASES: dict[str, Callable[[LanguageModel, list[Prompt], Pool], Sampled]] = {
    "generate": generate,
    "ours": ours,
    "continuous": continuous,
    "bound": bound,
}

if __name__ == "__main__":
    main()
