"""What a plan says of money, and what it refuses before anything is spent."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.config.experiment import Experiment
from flows.config.loading import load
from flows.config.sweep import Sweep
from flows.planning.purses import run_purse, sweep_purse
from flows.planning.run import plan
from flows.sweep_plan import plan_sweep
from models.ledger.entries import Reservation
from models.ledger.ledger import Ledger
from models.ledger.tables import Question
from tasks.engine.settings import settings


@pytest.fixture
def judged(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    base = yaml.safe_load(tiny_file.read_text())
    endpoint = {
        "model": "judge",
        "base_url": "http://127.0.0.1:1/v1",
        "prices": {"input": 1_000_000, "output": 1_000_000},
    }
    base["labelling"]["oracle"] = {"kind": "llm_judge", "endpoint": endpoint}
    tiny_file.write_text(yaml.safe_dump(base))
    return tiny_file


def budget(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("NINEFOLD_BUDGET", written)
    settings.cache_clear()


def money(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("money"))


def pay(purse: str, micro_usd: int, *, number: int = 0) -> None:
    """Buy one label from a purse, and nothing of the lab's."""
    ledger = Ledger(settings().ledger_url)
    for name in ("a", purse):
        ledger.open_account(name, max_micro_usd=10**9)
    asked = Question("judge", "c", "p", str(number))
    held = ledger.reserve("a", asked, ceiling=micro_usd, billed_on_failure=True, paid_by=(purse,))
    assert isinstance(held, Reservation)
    ledger.settle(held, status="labelled", score=1.0, raw="", tokens=0, micro_usd=micro_usd, seconds=1.0)


def test_a_plan_says_expected_at_most_and_cap(tiny_file: Path, judged: Path) -> None:
    planned = plan(load(Experiment, judged))
    expected = planned.micro_usd + planned.evaluation_micro_usd
    assert expected < planned.most_micro_usd < 1_100_000
    assert money(planned.lines()) == (
        f"money      expected ${expected / 10**6:.6f}, at most ${planned.most_micro_usd / 10**6:.6f}, cap $1.10"
    )


def test_the_lab_s_budget_is_told_and_refuses_what_does_not_fit_until_the_run_has_begun(
    home: Path, judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(monkeypatch, "1/day")
    experiment = load(Experiment, judged)
    assert money(plan(experiment).lines()).endswith("cap $1.10; NINEFOLD_BUDGET (1/day) has $1.00 left")
    assert not home.joinpath("ledger.sqlite").exists(), "to plan writes nothing"
    pay("run other", 990_000)
    with pytest.raises(ValueError, match=r"expected to be paid, and NINEFOLD_BUDGET='1/day' has \$0.01 left: raise it"):
        plan(experiment)
    pay(run_purse(experiment).name, 4_000, number=1)
    found = money(plan(experiment).lines())
    assert found.endswith("cap $1.10; $1.096 of it left; NINEFOLD_BUDGET (1/day) has $0.006 left")


def test_simulated_labels_need_no_budget(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget(monkeypatch, "0")
    assert "expected $0.58, at most $0.58, cap $1.10" in money(plan(load(Experiment, tiny_file)).lines())


def test_a_sweep_is_held_against_the_lab_as_a_whole_and_says_what_is_left_of_both(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"name": "small", "base": str(judged), "presets": ["random", "coreset_eft"]}
    sweep = Sweep.model_validate(given | {"max_micro_usd": 3_000_000})
    planned = plan_sweep(sweep)
    assert planned.micro_usd < planned.most_micro_usd < 3_000_000
    assert money(planned.lines()).endswith(f"at most ${planned.most_micro_usd / 10**6:.6f}, cap $3.00")
    tight = planned.alone_micro_usd - 1
    assert tight > planned.micro_usd, "each arm alone would not fit, and what they share does"
    budget(monkeypatch, f"{tight / 10**6:.6f}")
    assert plan_sweep(sweep).micro_usd == planned.micro_usd
    budget(monkeypatch, f"{(planned.micro_usd - 1) / 10**6:.6f}")
    with pytest.raises(ValueError, match="are expected to be paid, and NINEFOLD_BUDGET="):
        plan_sweep(sweep)
    budget(monkeypatch, "10")
    pay(sweep_purse(sweep).name, 1_000_000)
    assert money(plan_sweep(sweep).lines()).endswith("cap $3.00; $2.00 of it left; NINEFOLD_BUDGET (10) has $9.00 left")


def test_a_sweep_s_purse_is_the_same_whatever_its_cap_and_another_for_other_arms(tiny_file: Path) -> None:
    given: dict[str, Any] = {"name": "small", "base": str(tiny_file), "presets": ["random"], "max_micro_usd": 1}
    purse = sweep_purse(Sweep.model_validate(given))
    assert purse.name.startswith("sweep small ")
    assert sweep_purse(Sweep.model_validate(given | {"max_micro_usd": 2})).name == purse.name
    assert sweep_purse(Sweep.model_validate(given | {"presets": ["sft"]})).name != purse.name
    base = yaml.safe_load(tiny_file.read_text())
    tiny_file.write_text(yaml.safe_dump(base | {"iterations": 2}))
    assert sweep_purse(Sweep.model_validate(given)).name != purse.name
