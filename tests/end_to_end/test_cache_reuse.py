"""What a change executes and buys again, and what it does not: choices, seeds, workers, a damaged artifact."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from models.ledger.ledger import Ledger
from tasks.engine.settings import settings
from tasks.engine.store import store
from tests.support.tiny_runs import bought, executed, run

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def test_another_beta_reruns_dpo_and_evaluation_alone_and_buys_no_training_label(
    tiny_settings: dict[str, Any],
) -> None:
    run(tiny_settings)
    report = run(tiny_settings, dpo__beta=0.5)
    assert executed(report) == Counter(align=1, generate=1, annotate=1, likelihood=3, assess_policy=1), (
        "M₂'s new answers are scored by M₂, M₁ and M₀; M₁'s have been scored by M₀ before"
    )
    assert report["queries"] == 10
    first_pool = Ledger(settings().ledger_url).spent
    assert first_pool("nobody").queries == 0


def test_another_evaluator_reuses_the_labels_bought(tiny_settings: dict[str, Any]) -> None:
    run(tiny_settings)
    report = run(tiny_settings, evaluator={"kind": "linear", "loss": "bradley_terry", "ensemble": 4})
    done = executed(report)
    assert done["fit_evaluator"] == 2, "the evaluator and its shuffled control"
    assert {"load_prompts", "fine_tune", "acquire", "embed"} & done.keys() == set()
    assert report["queries"] == 10
    assert report["micro_usd"] == 100_000


def test_another_strategy_shares_generation_and_pays_only_for_new_tuples(
    tiny_settings: dict[str, Any],
) -> None:
    run(tiny_settings, labelling__queries=40, labelling__max_micro_usd=400_000)
    report = run(
        tiny_settings,
        labelling__queries=60,
        labelling__max_micro_usd=600_000,
        labelling__acquisition={"kind": "random"},
    )
    assert executed(report)["fine_tune"] == 0
    assert report["queries"] == 60, "the virtual cost is the arm's own"
    assert 20 <= report["queries_bought"] < 60, "40 of 80 tuples were owned already"
    assert report["micro_usd_paid"] == report["queries_bought"] * 10_000


def test_the_selected_ids_do_not_depend_on_workers_or_batch_sizes(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    ledger = Ledger(settings().ledger_url)
    run(tiny_settings)
    first = {(row["prompt"], row["response"]) for row in ledger.rows()}
    report = run(tiny_settings, labelling__concurrency=1, generation__batch_size=3)
    assert executed(report) == Counter()
    fresh = Settings(home=tmp_path / "fresh")
    with fresh:
        run(tiny_settings, labelling__concurrency=7, generation__batch_size=5)
        second = {(row["prompt"], row["response"]) for row in Ledger(settings().ledger_url).rows()}
    assert second == first


class Settings:
    """Another home, with result storage of its own, for the length of a block."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings

        self.patch.setenv("NINEFOLD_HOME", str(self.home))
        settings.cache_clear()
        self.storage = temporary_settings({PREFECT_LOCAL_STORAGE_PATH: self.home / "storage"})
        self.storage.__enter__()

    def __exit__(self, *_: object) -> None:
        self.storage.__exit__(None, None, None)
        self.patch.undo()
        settings.cache_clear()


def test_selection_and_training_seeds_are_separate(tiny_settings: dict[str, Any]) -> None:
    run(tiny_settings)
    selection = executed(run(tiny_settings, seeds={"selection": 1, "training": 0}))
    assert selection["fine_tune"] == selection["embed"] == 0
    assert selection["acquire"] == 1
    training = executed(run(tiny_settings, seeds={"selection": 0, "training": 1}))
    assert training["fine_tune"] == 1


def test_a_damaged_artifact_is_recomputed_and_nothing_is_bought_again(tiny_settings: dict[str, Any]) -> None:
    run(tiny_settings)
    owned = bought()
    for kind in ("labels", "responses", "adapters"):
        for path in Path(store().root, kind).iterdir():
            path.write_bytes(b"damaged")
    report = run(tiny_settings)
    assert executed(report)["fine_tune"] == 1
    assert report["queries"] == 10
    assert bought() == owned
    assert run(tiny_settings)["policy"] == report["policy"]
