"""What stops a run says why, keeps what was paid for, and lets the next one go on."""

from typing import Any

import pytest

from models.core.errors import UnusableOutput
from models.ledger.ledger import Ledger
from tasks.engine.settings import settings
from tasks.engine.store import DamagedArtifact, Ref
from tests.support.tiny_runs import executed, run

pytestmark = pytest.mark.usefixtures("prefect_server", "home")


def test_an_oracle_that_answers_garbage_stops_the_run_with_the_reason_and_keeps_its_replies(
    tiny_settings: dict[str, Any],
) -> None:
    garbage = {"kind": "noisy", "inner": {"kind": "gold"}, "garbage": 1.0}
    with pytest.raises(UnusableOutput, match="0 of 10 answers of the oracle hold a verdict"):
        run(tiny_settings, labelling__oracle=garbage)
    assert len(list(Ledger(settings().ledger_url).rows(status="quarantined"))) == 10
    with pytest.raises(ValueError, match="an evaluator needs at least 2 labels, got 0"):
        run(tiny_settings, labelling__oracle=garbage, labelling__least_usable=0.0)


def test_an_oracle_that_raises_stops_the_run_and_the_next_one_goes_on(tiny_settings: dict[str, Any]) -> None:
    from models.labelling.label import LabellingStopped

    broken = {"kind": "noisy", "inner": {"kind": "gold"}, "crash": 0.3, "seed": 1}
    with pytest.raises(LabellingStopped, match="The labels are kept; run again to go on from here"):
        run(tiny_settings, labelling__oracle=broken)
    kept = len(list(Ledger(settings().ledger_url).rows(status="labelled")))
    assert 0 < kept < 10
    report = run(tiny_settings)
    assert executed(report)["fine_tune"] == executed(report)["acquire"] == 0
    assert report["queries"] == 10


def test_responses_that_are_all_alike_stop_the_run_and_name_the_reason(tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(UnusableOutput, match="0 of 40 prompts have two responses that differ"):
        run(tiny_settings, generation__temperature=1e-4)
    assert not list(Ledger(settings().ledger_url).rows()), "before anything was bought"
    with pytest.raises(ValueError, match="no preference pair: 40 prompts are tied"):
        run(tiny_settings, generation__temperature=1e-4, generation__least_usable=0.0)


def test_a_model_that_changes_under_a_run_is_refused(tiny_settings: dict[str, Any]) -> None:
    from flows.config.experiment import PolicyConfig
    from flows.steps.stages import base_policy

    policy = base_policy(PolicyConfig.model_validate(tiny_settings["policy"]))
    with pytest.raises(ValueError, match="has changed since this run began"):
        policy.model_copy(update={"weights": "directory-0"}).checkpoint()
    with pytest.raises(DamagedArtifact):
        policy.adapted(Ref(uri=f"adapters/{'0' * 32}.json", sha256="0" * 64)).checkpoint()
