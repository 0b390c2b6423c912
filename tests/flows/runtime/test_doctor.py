"""What the doctor says of a machine that is busy."""

from pathlib import Path

from flows.runtime.doctor import busy, examine
from models.ledger.entries import Release, Reservation
from tasks.engine.ledgers import open_ledger


def test_other_work_is_no_fault_and_its_cost_is_said() -> None:
    assert busy(0.3, 2) == ("no other work keeps the cores busy", True, "")
    found = busy(7.0, 2)
    assert found.ok
    assert found.what == "other work keeps 2.0 of 2 cores busy: a run takes up to twice as long beside it"


def test_what_waits_to_be_booked_is_named(own_home: Path) -> None:
    assert not [found for found in examine() if "the ledger lacks" in found.what]
    ledger = open_ledger()
    journal = ledger.journal("h", in_flight=1)
    assert journal is not None
    journal.append(Release(Reservation(1, "a", 0)))
    assert not [found for found in examine() if "the ledger lacks" in found.what], "who writes it lives"
    journal.close()
    (waits,) = [found for found in examine() if "the ledger lacks" in found.what]
    assert not waits.ok
    assert f"{own_home / 'journal'} holds nothing that the ledger lacks: {journal.file.name}" == waits.what
    assert "the next run books it" in waits.remedy
    ledger.release_stale()
    assert not [found for found in examine() if "the ledger lacks" in found.what]
