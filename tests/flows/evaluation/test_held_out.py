"""KL, fluency and curve are those of scoring directly, and no model reads a text twice for them."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from flows.config.experiment import Experiment
from flows.steps.results import RunArtifacts
from models.core.data import Pair, Response
from models.core.randomness import seed_of
from models.policies.checkpoint import CACHE
from models.policies.language_model import LanguageModel, Likelihood
from tasks.engine.store import store
from tasks.policy.generate import generate_sharded
from tasks.policy.policy_ref import Policy
from tests.support.tiny_runs import executed, run

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def weights_of(model: LanguageModel) -> float:
    """Return a number that tells the policies of a run apart."""
    return float(model.model.model.layers[0].mlp.down_proj.weight.double().square().sum())


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Counter[float]:
    """Count the texts that each model reads for log-probabilities."""
    found: Counter[float] = Counter()
    forward = LanguageModel._token_logprob

    def counted(self: LanguageModel, ids: Any, mask: Any, asked: Any) -> Any:
        found[weights_of(self)] += len(ids)
        return forward(self, ids, mask, asked)

    monkeypatch.setattr(LanguageModel, "_token_logprob", counted)
    return found


class Lab:
    """A run's policies, their held-out answers, and what scoring says of them."""

    def __init__(self, settings: dict[str, Any], report: dict[str, Any]) -> None:
        self.x = Experiment.model_validate(settings)
        self.artifacts = RunArtifacts.model_validate(report["artifacts"])

    def answers(self, policy: Policy) -> list[Response]:
        seed = seed_of(self.x.seeds.training, 0, "evaluate")
        held_out, samples = self.artifacts.prompts.held_out, self.x.evaluation.samples
        made = generate_sharded(policy, held_out, self.x.generation, samples=samples, seed=seed)
        return store().rows(made.ref, Response)

    def scored(self, policy: Policy, rows: list[Response]) -> Likelihood:
        ended = [r.tokens < self.x.generation.max_new_tokens for r in rows]
        return policy.checkpoint().load_cached().likelihood([(r.prompt, r.text) for r in rows], ended=ended)

    def kl(self, policy: Policy) -> float:
        rows = self.answers(policy)
        return float((self.scored(policy, rows).logprob - self.scored(self.artifacts.sft_policy, rows).logprob).mean())

    def to_read(self, rows: list[Response], *, own: bool = False) -> int:
        """Return how many texts there are to read: each once, and of one's own none that is known."""
        tokens = self.scored(self.artifacts.sft_policy, rows).tokens.tolist()
        return len(
            {
                (r.prompt, r.text, r.tokens < self.x.generation.max_new_tokens)
                for r, counted in zip(rows, tokens, strict=True)
                if not (own and r.canonical and r.tokens == counted)
            }
        )


def test_the_figures_are_those_of_scoring_and_each_model_reads_each_text_once(
    tiny_settings: dict[str, Any], read: Counter[float]
) -> None:
    tiny_settings["evaluation"]["intermediate_checkpoints"] = 1
    report = run(tiny_settings)
    counted = Counter(read)
    lab = Lab(tiny_settings, report)
    artifacts, (half,) = lab.artifacts, lab.artifacts.checkpoints
    base, first, second = artifacts.sft_policy.base, artifacts.sft_policy, artifacts.policy
    old, new, between = (lab.answers(policy) for policy in (first, second, half))

    assert report["policy"]["kl"] == pytest.approx(lab.kl(second), abs=1e-4)
    for name, rows in (("before", old), ("after", new)):
        found = lab.scored(base, rows)
        expected = -found.logprob.sum() / found.tokens.sum()
        assert report["policy"][f"nll_per_token_{name}"] == pytest.approx(expected, abs=1e-4)
    curve = [point["kl"] for point in report["curve"]]
    assert curve == pytest.approx([0.0, lab.kl(half), lab.kl(second)], abs=1e-4)
    assert report["policy"]["kl"] == curve[-1]

    assert artifacts.pairs is not None
    assert artifacts.responses is not None
    pairs = store().rows(artifacts.pairs.ref, Pair)
    pool = {(r.prompt, r.text): r for r in store().rows(artifacts.responses, Response) if r.canonical}
    expected_reads = {
        base: lab.to_read(old) + lab.to_read(new),
        first: lab.to_read(new) + lab.to_read(between) + referred(first, pairs, pool),
        second: lab.to_read(new, own=True),
        half: lab.to_read(between, own=True),
    }
    assert counted == Counter({weights_of(p.checkpoint().load_cached()): n for p, n in expected_reads.items()})


def referred(policy: Policy, pairs: list[Pair], pool: dict[tuple[str, str], Response]) -> int:
    """Return how many texts of the pairs are to be read for the reference."""
    renderer, texts = policy.renderer(), set()
    for p in pairs:
        both = [renderer.encode(p.prompt, text) for text in (p.chosen, p.rejected)]
        start = min(e.start for e in both)
        for e, text in zip(both, (p.chosen, p.rejected), strict=True):
            known = pool.get((p.prompt, text))
            if known is None or known.tokens != len(e.ids) - start:
                texts.add((start, *e.ids))
    return len(texts)


def test_what_was_scored_for_one_arm_is_not_scored_for_the_next(
    tiny_settings: dict[str, Any], read: Counter[float]
) -> None:
    report = run(tiny_settings)
    lab = Lab(tiny_settings, report)
    base = weights_of(lab.artifacts.sft_policy.base.checkpoint().load_cached())
    read.clear()
    report = run(tiny_settings, dpo__beta=0.5)
    assert executed(report)["likelihood"] == 3
    assert executed(report)["reference"] == 0
    new = Lab(tiny_settings, report).answers(RunArtifacts.model_validate(report["artifacts"]).policy)
    assert read[base] <= len(new), "M₀ reads the new answers alone"
    read.clear()
    CACHE.release()
    curve = run(tiny_settings, dpo__beta=0.5, evaluation__intermediate_checkpoints=1)
    assert executed(curve)["likelihood"] == 2, "the answers of the policy on the way; the ends have been scored"
    assert np.isfinite([point["kl"] for point in curve["curve"]]).all()
