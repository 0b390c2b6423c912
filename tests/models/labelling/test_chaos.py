"""The short storm: labelling through faults and kill -9s loses nothing, pays nothing twice, and never passes its cap."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("database", [[], ["--postgres"]], ids=["sqlite", "postgresql"])
def test_a_storm_loses_nothing_and_pays_nothing_twice(database: list[str]) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "labelling_chaos.py"), "--short", *database]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 4
    assert found["terms"] >= 1
    assert found["database_faults"] >= 3
    assert found["spells"] >= 1
    assert found["longest_end"] <= 15
    assert found["lost_replies"] > 0, "the storm was one"
    assert (found["hung"], found["reserved_at_the_end"], found["journals_left"]) == (0, 0, 0)
    assert (found["lost"], found["double_paid"], found["wrong_rows"], found["over_cap"]) == (0, 0, 0, 0)
    assert (found["account_drift"], found["purse_drift"]) == (0, 0), "purses pay what is bought, whoever is killed"
    assert all(paid <= cap for paid, cap in found["paid_and_cap"].values())
    assert found["server_bill"] <= found["paid"]
