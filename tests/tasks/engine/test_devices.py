"""Devices: whoever computes with a model holds a slot of the named limit, others wait, and a limit must be there."""

import inspect
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

import flows.proxy_reward  # noqa: F401 - all stages are declared
from models.core.data import Response
from models.core.rubric import Rubric
from models.oracles.gold import Gold
from models.oracles.noisy import Noisy
from models.oracles.pairwise_from_scores import PairwiseFromScores
from models.oracles.reward_model import RewardModel
from tasks.engine.caching import Stage
from tasks.engine.devices import on_device
from tasks.engine.ray_cluster import run_remote
from tasks.engine.settings import settings
from tasks.engine.store import store
from tasks.labelling.annotate import AnnotationRequest, LabellingTerms, annotate
from tasks.policy.policy_ref import Policy
from tests.conftest import response

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NINEFOLD_DEVICE_LIMIT", "gpu-of-the-tests")
    settings.cache_clear()
    return "gpu-of-the-tests"


def test_a_limit_that_is_not_there_is_named_and_nothing_is_computed(device: str) -> None:
    computed: list[int] = []
    with pytest.raises(ValueError, match=f"{device}: Prefect's server has no .*prefect gcl create {device} --limit 1"):
        run_remote(partial(computed.append, 1))
    assert not computed


def test_an_oracle_that_computes_here_waits_for_the_device_too(device: str, tiny_model_path: Path) -> None:
    oracle = RewardModel(model=str(tiny_model_path))
    assert Noisy(inner=oracle).uses_device
    assert PairwiseFromScores(inner=oracle).uses_device
    rows = [response(0)]

    @flow
    def bought(oracle: RewardModel | Gold) -> int:
        responses = store().write_rows("responses", rows, Response)
        caps = {"account": "a", "max_queries": 1, "max_micro_usd": 0, "max_tokens": 0}
        purchase = AnnotationRequest(
            responses=responses, picks=None, oracle=oracle, fingerprint="f", rubric=Rubric(), **caps
        )
        return annotate(purchase, terms=LabellingTerms(concurrency=1)).ref.rows or 0

    with pytest.raises(ValueError, match=f"NINEFOLD_DEVICE_LIMIT={device}"):
        bought(oracle)
    assert bought(Gold(micro_usd=0)) == 1


def test_two_take_turns_at_a_device_of_one_slot(device: str) -> None:
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=device, limit=1))
    at_work: list[str] = []

    def compute(name: str) -> None:
        with on_device():
            at_work.append(f"{name} begins")
            time.sleep(0.5)
            at_work.append(f"{name} ends")

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(compute, ("one", "other")))
    first = at_work[0].split()[0]
    assert at_work[:2] == [f"{first} begins", f"{first} ends"]
    assert len(at_work) == 4


def test_every_stage_that_is_given_a_policy_waits_for_a_device_or_is_placed_by_the_cluster() -> None:
    stages = [value for module in _modules() for value in vars(module).values() if isinstance(value, Stage)]
    given = {one.name: one for one in stages if _takes_policy(one)}
    assert {"fine_tune", "generate", "embed", "align", "score", "fit_evaluator"} <= given.keys()
    names = {
        name for name, one in given.items() if "@on_device()" not in _source(one) and "run_remote(" not in _source(one)
    }
    assert names == {"load_prompts", "instructions"}, "they count tokens, and read no weights"


def _modules() -> list[object]:
    import importlib
    import pkgutil

    import tasks

    return [importlib.import_module(entry.name) for entry in pkgutil.walk_packages(tasks.__path__, "tasks.")]


def _takes_policy(one: "Stage[..., object]") -> bool:
    kinds = inspect.get_annotations(inspect.unwrap(one.task.fn), eval_str=True)
    given = [kind for name, kind in kinds.items() if name != "return"]
    return any(Policy in (kind, *get_args(kind)) for kind in given)


def _source(one: "Stage[..., object]") -> str:
    return inspect.getsource(inspect.unwrap(one.task.fn))
