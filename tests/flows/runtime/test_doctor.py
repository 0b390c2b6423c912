"""What the doctor says of a machine that is busy."""

from flows.runtime.doctor import busy


def test_other_work_is_no_fault_and_its_cost_is_said() -> None:
    assert busy(0.3, 2) == ("no other work keeps the cores busy", True, "")
    found = busy(7.0, 2)
    assert found.ok
    assert found.what == "other work keeps 2.0 of 2 cores busy: a run takes up to twice as long beside it"
