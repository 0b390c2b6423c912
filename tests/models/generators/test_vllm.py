"""vLLM as a generator: its own server, on the merged policy; and nothing of it stays, however the run ends.

On the real one where NINEFOLD_VLLM names its command, else on what answers like it (tests/support/fake_vllm.py).
"""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from models.core.data import Demonstration, Prompt
from models.generators.vllm import VLLM
from models.policies.checkpoint import Checkpoint
from models.policies.resolve import PACKAGED, locate
from models.training.sft import SFT, train_sft
from tests.support.processes import ROOT, until

pytestmark = pytest.mark.slow

PROMPTS = [Prompt.of(text) for text in ("the film is", "a warm and witty tale of", "the film is a")]
REAL = os.environ.get("NINEFOLD_VLLM")


def script(folder: Path, line: str) -> Path:
    command = folder / "vllm"
    command.write_text(f"#!/bin/sh\nexec {line}\n")
    command.chmod(0o755)
    return command


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLANTED_API_KEY", "sk-planted")
    if REAL:
        return Path(REAL)
    stand_in = f"{shlex.quote(sys.executable)} {ROOT / 'tests/support/fake_vllm.py'}"
    monkeypatch.setenv("NINEFOLD_VLLM", str(script(tmp_path, f'{stand_in} "$@"')))
    return Path(os.environ["NINEFOLD_VLLM"])


@pytest.fixture
def policy(tiny_checkpoint: Checkpoint) -> Checkpoint:
    return replace(tiny_checkpoint, source=locate(PACKAGED).source) if REAL else tiny_checkpoint


def servers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "--served-model-name" in (p.info["cmdline"] or [])]


@pytest.mark.usefixtures("command")
def test_responses_are_the_merged_policys_and_the_same_for_a_seed(policy: Checkpoint, tmp_path: Path) -> None:
    recipe = SFT(learning_rate=2e-2, epochs=8.0, batch_size=2, max_length=64)
    train_sft(
        policy.load_copy(), [Demonstration("the film is", "dull and boring")] * 4, recipe, folder=tmp_path, seed=0
    )
    trained = replace(policy, adapters=(tmp_path,))
    generator = VLLM(temperature=1.0, max_new_tokens=8)

    def sample(seed: int) -> list[tuple[str, int, str, int, float]]:
        found = generator.sample(trained, PROMPTS, samples=2, seed=seed, what="")
        return [(r.prompt_id, r.sample, r.text, r.tokens, r.logprob) for r in found]

    first = sample(1)
    assert [row[:2] for row in first] == [(p.id, n) for p in PROMPTS for n in range(2)]
    assert [row[:4] for row in sample(1)] == [row[:4] for row in first]
    assert [row[2] for row in sample(2)] != [row[2] for row in first]
    ended = [tokens < 8 for _, _, _, tokens, _ in first]
    texts = [(p.text, row[2]) for p, row in zip([p for p in PROMPTS for _ in range(2)], first, strict=True)]
    here = trained.load_copy().likelihood(texts, ended=ended)
    for (_, _, _, tokens, logprob), known, count in zip(first, here.logprob, here.tokens, strict=True):
        if tokens == count:  # else the text is written in other tokens than it was drawn in
            assert logprob == pytest.approx(known, abs=0.02)
    assert sum(row[3] == count for row, count in zip(first, here.tokens, strict=True)) >= 2
    assert not servers(), "it holds no memory when its work is done"


@pytest.mark.usefixtures("command")
def test_a_model_may_be_named_from_where_one_is(policy: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(policy.source).parent)
    near = replace(policy, source=Path(policy.source).name)
    assert len(VLLM(max_new_tokens=4).sample(near, PROMPTS, samples=1, seed=1, what="")) == len(PROMPTS)


@pytest.mark.usefixtures("command")
def test_a_server_does_not_outlive_whoever_started_it(policy: Checkpoint, tmp_path: Path) -> None:
    asks = (
        "from pathlib import Path; import time; from models.generators.vllm import VLLM\n"
        f"with VLLM()._serving(Path({policy.source!r}), 'float32', 64, Path({str(tmp_path / 'log')!r})) as server:\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", asks], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert servers()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not servers(), log=Path("/dev/null"), seconds=30)


def test_what_is_not_there_or_does_not_start_is_named(
    tmp_path: Path, policy: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NINEFOLD_VLLM", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="vLLM's command is not at .*nowhere.*pip install 'vllm>="):
        VLLM().check()
    monkeypatch.setenv("NINEFOLD_VLLM", str(script(tmp_path, "sh -c 'echo no such device; exit 3'")))
    with pytest.raises(RuntimeError, match=r"ended \(3\) before it was asked anything.*no such device"):
        VLLM().sample(policy, PROMPTS, samples=1, seed=0, what="")


def test_how_it_is_spread_does_not_change_what_it_is() -> None:
    assert {"tensor_parallel", "memory_share", "batch_size"} <= VLLM.execution_fields
    assert VLLM(tensor_parallel=4).gpus == 4
