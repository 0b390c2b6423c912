"""Generation with vLLM (2309.06180), through a server on loopback in its own environment."""

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, PositiveInt
from typing_extensions import override

from models.core import progress
from models.core.cache import sha256_of
from models.core.data import Prompt, Response
from models.core.errors import ConfigError, ProcessError
from models.core.event_loop import run
from models.core.randomness import seed_of
from models.core.subprocesses import healthy, watched
from models.generators.base import Generator, response_of
from models.policies.chat_template import Renderer
from models.policies.checkpoint import CACHE, Checkpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_COMMAND = "NINEFOLD_VLLM"
_INSTALL = f"python -m venv vllm; vllm/bin/pip install 'vllm>=0.32', then {_COMMAND}=vllm/bin/vllm"
_NAME, _CONFIG = "policy", "config.json"
_LENGTHS = 512  # tokens
_STARTING, _ANSWERING = 1200.0, 3600.0  # seconds
# The server needs none of the keys that are in this process's environment.
_PASSED = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")
_PASSED_ALIKE = ("CUDA_", "NVIDIA_", "NCCL_", "VLLM_", "OMP_", "XDG_CACHE")


class VLLM(Generator):
    """Sample with `vllm serve`, on 127.0.0.1 while it is needed; its command is named by NINEFOLD_VLLM, or on the path.

    A text depends on the seed, its prompt and its sample number; and on what it is computed beside by the rounding of
    vLLM's kernels, which VLLM_BATCH_INVARIANT=1 takes away where they can do without. Keys and values of a prompt are
    computed once for all of its samples (prefix caching).
    """

    execution_fields: ClassVar[frozenset[str]] = frozenset({"batch_size", "tensor_parallel", "memory_share"})

    kind: Literal["vllm"] = "vllm"
    batch_size: PositiveInt = Field(256, description="Requests in flight at once. It does not enter the cache key.")
    tensor_parallel: PositiveInt = Field(1, description="GPUs that the model is spread over.")
    memory_share: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory that the server takes.")

    @property
    @override
    def gpus(self) -> int:
        return self.tensor_parallel

    @override
    def check(self) -> None:
        command()

    @override
    def sample(
        self, policy: Checkpoint, prompts: Sequence[Prompt], *, samples: int, seed: int, what: str
    ) -> list[Response]:
        import openai

        if not prompts:
            return []
        with tempfile.TemporaryDirectory(prefix="ninefold-vllm-") as scratch:
            model, renderer, log = _model(policy, Path(scratch)), policy.renderer(), Path(scratch, "log")
            asked = [(prompt, renderer.prompt_ids(prompt.text)) for prompt in prompts]
            longest = max(len(ids) for _, ids in asked) + self.max_new_tokens
            CACHE.release()
            with self._serving(model, policy.dtype, _length(model, longest), log) as server:
                try:
                    return run(self._all(server, renderer, asked, samples=samples, seed=seed, what=what))
                except* openai.OpenAIError as errors:
                    said = f"vLLM's server failed ({errors.exceptions[0]}); it said last: {_end(log)}"
                    failure = RuntimeError(said)
                raise failure

    @contextmanager
    def _serving(self, model: Path, dtype: str, longest: int, log: Path) -> Iterator["_Server"]:
        here = log.parent  # the scratch folder, whose name is another each time
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        key = secrets.token_urlsafe(24)  # who else is on this machine is not to use it
        named = f"./{model.relative_to(here)}" if model.is_relative_to(here) else str(model)
        asked = [str(command()), "serve", named, "--host", "127.0.0.1", "--port", str(port)]
        asked += ["--served-model-name", _NAME, "--dtype", dtype, "--max-model-len", str(longest)]
        asked += ["--generation-config", "vllm", "--enable-prefix-caching"]  # and not a model's own top-k or penalties
        asked += ["--tensor-parallel-size", str(self.tensor_parallel)]
        asked += ["--gpu-memory-utilization", str(self.memory_share)]
        passed = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(_PASSED_ALIKE)}
        passed["PATH"] = f"{command().parent}:{passed.get('PATH', '')}"  # of its own tools
        passed |= {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        url = f"http://127.0.0.1:{port}"
        with log.open("w") as out, watched(asked, output=out, environment=passed, within=here) as process:
            _wait(process, f"{url}/health", log)
            yield _Server(f"{url}/v1", key)

    async def _all(
        self,
        server: "_Server",
        renderer: Renderer,
        prompts: Sequence[tuple[Prompt, list[int]]],
        *,
        samples: int,
        seed: int,
        what: str,
    ) -> list[Response]:
        import openai

        at_once = asyncio.Semaphore(self.batch_size)
        options = {"model": _NAME, "max_tokens": self.max_new_tokens, "temperature": self.temperature}
        options |= {"top_p": self.top_p, "logprobs": 0, "return_token_ids": True}
        # at this token alone, as likelihoods count it; by itself vLLM ends at others that a model's configuration names
        options |= {"ignore_eos": True, "stop_token_ids": [renderer.tokenizer.eos_token_id]}

        async def one(client: "AsyncOpenAI", prompt: Prompt, ids: list[int], number: int) -> Response:
            drawn = {"prompt": ids, "seed": seed_of(seed, number, f"generate {prompt.id}")}
            async with at_once:
                answer: Any = await client.post("/completions", body=options | drawn, cast_to=object)
            bar.update()
            choice = answer["choices"][0]
            logprob = float(sum(choice["logprobs"]["token_logprobs"]))  # of the model as it is, at temperature 1
            return response_of(renderer, prompt, number, choice["token_ids"], logprob=logprob, rounds_alike=False)

        with progress.bar(total=len(prompts) * samples, desc=what, unit="response") as bar:
            direct = openai.DefaultAsyncHttpxClient(trust_env=False)  # by no proxy
            async with (
                openai.AsyncOpenAI(
                    api_key=server.key, base_url=server.url, timeout=_ANSWERING, http_client=direct
                ) as client,
                asyncio.TaskGroup() as group,
            ):
                asked = [
                    group.create_task(one(client, prompt, ids, number))
                    for prompt, ids in prompts
                    for number in range(samples)
                ]
            return [task.result() for task in asked]


class _Server(NamedTuple):
    url: str
    key: str


def _model(policy: Checkpoint, scratch: Path) -> Path:
    """Return where the merged policy lies: vLLM compiles a model once for its name, which therefore says what it is."""
    if not policy.adapters:
        return Path(policy.source).absolute()
    made = policy.write_merged(scratch / "made")
    return made.rename(scratch / f"model-{sha256_of(made / _CONFIG)[:16]}")


def _length(model: Path, longest: int) -> int:
    """Return how long texts may be: as other shards of one stage have it, for vLLM compiles for each length anew."""
    config = json.loads((model / _CONFIG).read_text())
    most = int(config.get("text_config", config).get("max_position_embeddings") or longest)
    return max(longest, min(-(-longest // _LENGTHS) * _LENGTHS, most))


def command() -> Path:
    """Return vLLM's command; raise ConfigError with the remedy if there is none."""
    named = os.environ.get(_COMMAND)
    found = named or shutil.which("vllm")
    if found is None or not Path(found).is_file():
        missing = f"is not at {named}" if named else "is not on the path"
        raise ConfigError(f"generation.kind=vllm: vLLM's command {missing}: {_INSTALL}")
    return Path(found).absolute()


def _wait(process: "subprocess.Popen[bytes]", health: str, log: Path) -> None:
    """Return when the server is healthy; raise ProcessError with the end of its log if it ends or takes too long."""
    if not healthy(process, health, seconds=_STARTING):
        state = f"ended ({process.returncode})" if process.poll() is not None else "is not ready"
        raise ProcessError(f"vLLM's server {state} before it was asked anything; it said last: {_end(log)}")


def _end(log: Path) -> str:
    """Return the end of a log: a cause may be some tracebacks before it."""
    return log.read_text(errors="replace")[-20_000:]
