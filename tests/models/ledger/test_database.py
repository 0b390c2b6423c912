"""The ledger's database: opened by several at once, from an earlier version, and transactions that are done again."""

import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from models.core.errors import ConfigError
from models.core.money import Amount
from models.core.processes import start_of
from models.ledger.accounts import adjust
from models.ledger.ledger import Ledger
from models.ledger.liveness import _place, may_settle
from models.ledger.tables import ACCOUNTS
from tests.models.ledger.test_ledger import CENT, buy, question


def test_a_ledger_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.sqlite'}"
    ledger = Ledger(url)
    ledger.open_account("a", max_queries=9, max_micro_usd=9 * CENT)
    buy(ledger, "a", question(0))
    with ledger.engine.begin() as connection:
        for table, column in (("charges", "tokens"), ("accounts", "tokens"), ("accounts", "max_tokens")):
            connection.execute(sa.text(f"ALTER TABLE {table} DROP COLUMN {column}"))
    ledger.engine.dispose()
    again = Ledger(url)
    assert again.spent("a")[:5] == (1, CENT, 1, CENT, 0)
    buy(again, "a", question(1))
    assert again.spent("a").queries == 2


def test_a_transaction_given_up_to_end_a_deadlock_is_done_again(new_database: Callable[[], str]) -> None:
    """Two transactions take two accounts in opposite order, and both have one before either asks for the other."""
    ledger, attempts = Ledger(new_database()), Counter[str]()
    for name in ("a", "b"):
        ledger.open_account(name, max_queries=9, max_micro_usd=9 * CENT)
    both_have_one, other_is_done = threading.Barrier(2), threading.Event()

    def charge(first: str, second: str) -> None:
        def work(connection: Connection) -> None:
            attempts[first] += 1
            if attempts[first] == 2:  # else it may be in the other's way once more
                assert other_is_done.wait(10)
            adjust(connection, first, queries=1, by=Amount(1, 0))
            if attempts[first] == 1:
                both_have_one.wait(10)
            adjust(connection, second, queries=1, by=Amount(1, 0))

        ledger.transact(work)
        other_is_done.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(charge, ["a", "b"], ["b", "a"]))
    assert sorted(attempts.values()) == [1, 2], "one was given up, and came again"
    with ledger.engine.begin() as connection:
        counted = connection.execute(sa.select(ACCOUNTS.c.queries, ACCOUNTS.c.micro_usd)).all()
    assert [tuple(row) for row in counted] == [(2, 2), (2, 2)]


def test_several_may_open_a_new_ledger_at_once(ledger_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        ledgers = list(pool.map(Ledger, [ledger_url] * 8))
        list(pool.map(lambda ledger: ledger.open_account("a", max_queries=1, max_micro_usd=CENT), ledgers))
    assert all(list(ledger.rows()) == [] for ledger in ledgers)


def test_a_dead_process_that_nobody_has_reaped_holds_nothing() -> None:
    child = subprocess.Popen(["sleep", "60"])
    holder = f"{_place()}|{child.pid}|{start_of(psutil.Process(child.pid)):.2f}"
    assert may_settle(holder, frozenset())
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not may_settle(holder, frozenset())
    child.wait()
    assert not may_settle(holder, frozenset())


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(
        ConnectionError, match=r"the ledger postgresql.*\*\*\*@/x\?host=.* does not let us in: .*NINEFOLD_LEDGER_URL"
    ) as told:
        Ledger(f"postgresql+psycopg://u:secret@/x?host={tmp_path}")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        *(("nfs4", True), ("NFS", True), ("cifs", True), ("smb3", True), ("fuse.sshfs", True), ("fuse.gcsfuse", True)),
        *(("lustre", True), ("ext4", False), ("xfs", False), ("overlay", False), ("tmpfs", False), ("apfs", False)),
        *(("fuse.fuse-overlayfs", False), ("btrfs", False), ("zfs", False), ("virtiofs", False)),
    ],
)
def test_a_file_on_a_network_file_system_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool
) -> None:
    def mounts(**_: bool) -> list[SimpleNamespace]:
        return [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]

    monkeypatch.setattr(psutil, "disk_partitions", mounts)
    url = f"sqlite:///{tmp_path / 'new' / 'ledger.sqlite'}"
    if not refused:
        assert list(Ledger(url).rows()) == []
        return
    with pytest.raises(ConfigError, match=f"lies on {kind} .*NINEFOLD_LEDGER_URL"):
        Ledger(url)
    assert not (tmp_path / "new").exists()
