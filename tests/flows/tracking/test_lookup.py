"""After a failure only what failed and what follows it is executed; from a chosen stage on, on purpose."""

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import tasks
from flows.config.experiment import Experiment
from flows.proxy_reward import proxy_reward
from flows.tracking import run as tracking
from flows.tracking.lookup import find_run
from models.ledger.ledger import Ledger
from tasks.engine.caching import Stage
from tasks.engine.settings import settings
from tests.support.tiny_runs import written

pytestmark = pytest.mark.usefixtures("prefect_server", "home")
# in the order in which they are first reached
STAGES = ["load_prompts", "fine_tune", "generate", "embed", "acquire", "annotate", "fit_evaluator", "cross_fit"]
STAGES += [
    "check_gate",
    "score",
    "build_pairs",
    "reference",
    "align",
    "likelihood",
    "assess_evaluator",
    "reformat",
    "assess_biases",
    "assess_policy",
]


def stage_of(name: str) -> Stage[Any, Any]:
    """Return a stage by its name, from whichever module has it."""
    modules = [importlib.import_module(entry.name) for entry in pkgutil.walk_packages(tasks.__path__, "tasks.")]
    return next(found for module in modules if isinstance(found := vars(module).get(name), Stage))


@pytest.fixture
def succeeded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the executions of every stage that came to an end."""
    found: Counter[str] = Counter()

    def counted(stage: Stage[Any, Any]) -> Callable[..., Any]:
        original = stage.task.fn

        def execute(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            found[stage.name] += 1
            return result

        return execute

    for name in STAGES:
        stage = stage_of(name)
        monkeypatch.setattr(stage.task, "fn", counted(stage))
    return found


def test_each_stage_fails_in_turn_and_nothing_else_is_executed_again(
    tiny_settings: dict[str, Any], succeeded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.model_validate(tiny_settings)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    for name in STAGES:
        with monkeypatch.context() as patch:
            patch.setattr(stage_of(name).task, "fn", broken)
            with pytest.raises(RuntimeError, match="broken"):
                proxy_reward(experiment, sweep="nightly")
    found = find_run("tiny")
    assert found[:3] == (experiment, "nightly", None), "a run that failed is known by its name"
    assert len(found.accounts) == len(set(found.accounts)) > 0, "and where it has bought"
    report = proxy_reward(found.experiment, sweep=found.sweep)
    calls = Counter(stage.name for stage in report.stages)
    assert succeeded == calls, "after eighteen failures every stage has been executed as often as in one run"
    assert report.queries == 10
    bought = len(list(Ledger(settings().ledger_url).rows()))

    succeeded.clear()
    again = proxy_reward(found.experiment, restart_from="fit_evaluator")
    executed = Counter(stage.name for stage in again.stages if not stage.cached)
    assert executed == succeeded
    assert executed.keys() & {"load_prompts", "fine_tune", "acquire"} == set(), "what comes before stays"
    assert executed["fit_evaluator"] == calls["fit_evaluator"]
    assert executed["align"] == executed["assess_policy"] == 1
    assert len(list(Ledger(settings().ledger_url).rows())) == bought, "asked again, and nothing bought again"
    assert written(again)["policy"] == written(report)["policy"]


def test_a_run_of_an_earlier_version_goes_on_under_its_old_parameters(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    experiment = Experiment.model_validate(tiny_settings)
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "flat_params", lambda _: {"strategy": "as it was called"})
        proxy_reward(experiment)
    proxy_reward(experiment)
    (run,) = mlflow.search_runs(experiment_names=[tracking.EXPERIMENT], output_format="list")
    assert run.data.params["strategy"] == "as it was called"
    assert run.data.params["budget"] == "10"


def test_a_stage_or_a_run_there_is_not_is_refused_with_what_there_is(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no stage is called 'trian': restart from one of acquire, align"):
        proxy_reward(Experiment.model_validate(tiny_settings), restart_from="trian")
    with pytest.raises(ValueError, match="no run is called 'nothing': the newest are tiny"):
        find_run("nothing")
