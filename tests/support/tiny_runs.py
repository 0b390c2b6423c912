"""Runs of the tiny experiment in the test's own process, and what they have executed and bought."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from flows.config.experiment import Experiment
from flows.proxy_reward import proxy_reward
from flows.reporting.schema import RunReport
from models.core.cache import sha256_of
from models.ledger.ledger import Ledger
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store


def run(given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Run an experiment with `section__field=value` changes; return its report as it is written."""
    changed = json.loads(json.dumps(given))
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = changed
        for parent in parents:
            place = place[parent]
        place[last] = value
    return written(proxy_reward(Experiment.model_validate(changed)))


def written(report: RunReport) -> dict[str, Any]:
    """Return a report as its file has it."""
    found: dict[str, Any] = json.loads(report.model_dump_json())
    return found


def executed(report: dict[str, Any]) -> Counter[str]:
    return Counter(stage["name"] for stage in report["stages"] if not stage["cached"])


def bought() -> int:
    return len(list(Ledger(settings().ledger_url).rows()))


def ref_of(path: Path) -> Ref:
    """Return the reference of a file of the store."""
    return Ref(uri=str(path.relative_to(store().root)), sha256=sha256_of(path))
