"""Four processes buy labels from a server that fails in ten ways, killed at random: what is lost, what is paid twice?

    make chaos                                            # a few minutes: kills and faults of the database, on SQLite
    python benchmarks/labelling_chaos.py --postgres       # the same on a PostgreSQL server of its own, stopped and started
    python benchmarks/labelling_chaos.py --short          # half a minute; a test runs it

A third of the strikes is a SIGTERM to the process's group, which ends as by Ctrl-C; the others are kill -9. Beside them the
database fails: SQLite's disk is full (RLIMIT_FSIZE) or another writer holds it; PostgreSQL is stopped, at once or politely,
and started again after up to four seconds, once after sixty. Processes wait a second for it, then keep replies in a journal,
which the next start books. The server has spells in which it answers every call with a rate limit, or is out of order, the
longest of thirty seconds. Each process has a wall clock of its own, up to a day wrong, that is stepped while it runs.

Two accounts, one after the other: one with money for everything, one whose cap binds. The ledger is then held against what
the server itself has answered. A reply that never arrived counts as paid once, at its ceiling, and is asked again while
there is money. The last line is JSON: `kills`; `paid` and `cap`, micro-dollars of both accounts; `lost`, questions without
an answer although there was money; `double_paid`, questions that the server has billed for more than the ledger knows, and
labels owned twice; `wrong_rows`, labels that are not what the server says of the text; `over_cap`, times that an account was
seen above its cap; `purse_drift`, micro-dollars by which the purses of a sweep and of the lab differ from what was bought;
`database_faults`; `terms`, SIGTERMs among the kills, and `longest_end`, the most seconds that a process took to end after
one; `spells` of the server; `hung`, processes that had to be given up; `longest_silence`, seconds in which the ledger gained
no label while processes ran.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models.core.data import Response  # noqa: E402
from models.core.errors import ConfigError  # noqa: E402
from models.core.money import NO_CAP, Prices  # noqa: E402
from models.ledger.journal import waiting_in  # noqa: E402
from models.ledger.ledger import Ledger  # noqa: E402
from models.ledger.purses import Budget, Purse  # noqa: E402
from tests.support.fake_judge import LoopbackJudge, right_score  # noqa: E402
from tests.support.postgres import Postgres, running  # noqa: E402

_PROCESSES, _WORKERS = 4, 8
_PATIENCE = 60.0  # seconds that a process may take to end after a SIGTERM
_FAULTS = {
    "rate_limit": 0.03,
    "error": 0.03,
    "timeout": 0.003,
    "truncated": 0.01,
    "out_of_range": 0.02,
    "empty": 0.01,
    "refusal": 0.01,
    "slow": 0.03,
    "drop": 0.01,
    "drip": 0.002,
}
_SPELLS = ({"rate_limit": 1.0}, {"error": 1.0})  # what a server does for a while, whoever asks
_FREE = {"rate_limit", "error"}  # what a server does not bill
PRICES = Prices(input=1_000_000, output=2_000_000)


def questions(account: str, count: int) -> list[Response]:
    """Return distinct tuples to ask about, others for each account."""
    return [Response(f"r{n}", "p", "tell a story", n, f"story {account}, chapter {n}", 5, -9.0) for n in range(count)]


def judge_at(url: str) -> Any:  # noqa: ANN401
    """Return the oracle that everybody asks."""
    from models.oracles.chat_client import Endpoint
    from models.oracles.llm_judge import LLMJudge

    return LLMJudge(
        endpoint=Endpoint(model="judge", base_url=url, prices=PRICES, max_tokens=32, timeout=1.5), attempts=3
    )


def work(url: str, place: tuple[str, str], account: str, count: int, cap: int) -> None:
    """Buy labels in a process and a group of its own, with a clock of its own, until all are there or a SIGTERM comes."""
    os.setpgrp()
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _wrong_clock(np.random.default_rng(os.getpid()))
        buy(url, place, account, count, cap)


def buy(url: str, place: tuple[str, str], account: str, count: int, cap: int) -> None:
    """Buy labels of every question, until all are there or the money is spent.

    `place` is the ledger's URL and the folder of its journals.
    """
    ledger, journal = place
    from models.core.rubric import Rubric
    from models.labelling.label import LabellingSession, LabellingStopped, label_responses

    os.environ["OPENAI_API_KEY"] = "loopback"
    judge = judge_at(url)
    while True:
        try:
            book = Ledger(ledger, journal=Path(journal), budget=Budget(NO_CAP - 1))
            break
        except (ConnectionError, OSError, sa.exc.DBAPIError):
            time.sleep(0.2)
    purses = (Purse(name="sweep storm", micro_usd=NO_CAP - 1),)
    session = LabellingSession(book, judge, Rubric(name="warmth"), account, patience=1.0, purses=purses)
    while True:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # four progress bars at once
                label_responses(
                    questions(account, count), session, max_queries=10 * count, max_micro_usd=cap, concurrency=_WORKERS
                )
        except (LabellingStopped, ConfigError):  # the oracle or the ledger is away, or there is no room for a journal
            time.sleep(0.1)
            continue  # begun again, as the user would
        return


def _wrong_clock(rng: np.random.Generator) -> None:
    """Give this process a wall clock that is up to a day off, and is stepped every second."""
    true = time.time

    def told() -> float:
        now = true()
        return now + 86_400.0 * float(np.random.default_rng([offset, int(now)]).uniform(-1.0, 1.0))

    offset = int(rng.integers(1 << 30))
    time.time = told


class Database:
    """The ledger's database, which fails on purpose."""

    def __init__(self, folder: Path, server: Postgres | None) -> None:
        self.server, self.file = server, folder / "ledger.sqlite"
        self.url = f"sqlite:///{self.file}" if server is None else server.url(server.new_database())

    def fail(self, processes: list[int], rng: np.random.Generator, *, seconds: float) -> None:
        """Let it be away, full or held for so long."""
        if self.server is not None:
            self.server.stop("immediate" if rng.random() < 0.5 else "fast")
            time.sleep(seconds)
            self.server.start()
        elif rng.random() < 0.5:
            most = max(file.stat().st_size for file in self.file.parent.glob("ledger.sqlite*"))
            for process in processes:
                _limit(process, max(most, 1 << 18))
            time.sleep(seconds)
            for process in processes:
                _limit(process, resource.RLIM_INFINITY)
        else:
            with contextlib.closing(sqlite3.connect(self.file, timeout=60.0, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                time.sleep(seconds)
                other.execute("ROLLBACK")


def _limit(process: int, size: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Storm(NamedTuple):
    """How often a storm strikes; its longest fault, its longest spell, and how long it may last, in seconds."""

    kills: int
    faults: int
    spells: int
    fault_seconds: float
    spell_seconds: float
    most: float


def _lengths(count: int, longest: float, rng: np.random.Generator) -> list[float]:
    """Return the lengths of so many faults, in seconds: the second is the longest, all others take up to four."""
    lengths = list(rng.uniform(0.3, 4.0, count))
    lengths[1:2] = [longest]
    return lengths


def _spell(server: LoopbackJudge, faults: dict[str, float], seconds: float) -> None:
    """Let a server fail in one way, and then as before; in a thread, so that all else goes on."""

    def end() -> None:
        server.faults = _FAULTS

    server.faults = faults
    threading.Timer(seconds, end).start()


def _end(process: ForkServerProcess, *, politely: bool) -> float:
    """End a process and its group, and return the seconds that it took."""
    began = time.monotonic()
    how, leader = signal.SIGTERM if politely else signal.SIGKILL, process.pid or 0
    try:
        os.killpg(leader, how)
    except ProcessLookupError:  # it has not made its group yet
        os.kill(leader, how)
    process.join(_PATIENCE)
    if process.is_alive():
        process.kill()
        process.join()
    return time.monotonic() - began


def storm(
    server: LoopbackJudge,
    database: Database,
    account: str,
    *,
    count: int,
    cap: int,
    strikes: Storm,
    rng: np.random.Generator,
) -> Counter[str]:
    """Run the four processes to the end, killing and replacing them; return the kills and the times above the cap."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openai", "models.labelling.label", "models.oracles.llm_judge", "pyrate_limiter"])
    journal = str(database.file.parent / "journal")

    def start() -> ForkServerProcess:
        process = context.Process(target=work, args=(server.url, (database.url, journal), account, count, cap))
        process.start()
        return process

    seen: Counter[str] = Counter()
    running = [start() for _ in range(_PROCESSES)]
    book = Ledger(database.url, journal=Path(journal))
    began = moved = time.monotonic()
    labels = looks = 0
    faults, spells = (
        _lengths(number, longest, rng)
        for number, longest in ((strikes.faults, strikes.fault_seconds), (strikes.spells, strikes.spell_seconds))
    )
    quiet = 0.0
    while any(process.is_alive() for process in running):
        time.sleep(rng.uniform(0.05, 0.4))
        spent = book.spent(account)
        seen["over_cap"] += spent.micro_usd > cap
        seen["longest_silence"] = max(seen["longest_silence"], round(time.monotonic() - moved))
        if spent.queries != labels:
            labels, moved = spent.queries, time.monotonic()
        if time.monotonic() - began > strikes.most:
            seen["hung"] += sum(process.is_alive() for process in running)
            for process in running:
                process.kill()
            return seen
        looks += 1
        # By count, not by chance: a short storm is soon over.
        if spells and looks % 5 == 2 and time.monotonic() > quiet:
            quiet = time.monotonic() + spells[-1] + 1.0
            _spell(server, _SPELLS[len(spells) % 2], spells.pop())
            seen["spells"] += 1
        if faults and looks % 2:
            database.fail([p.pid for p in running if p.pid is not None and p.is_alive()], rng, seconds=faults.pop(0))
            seen["database_faults"] += 1
        for place in rng.choice(len(running), 2, replace=False):
            victim = running[place]
            if seen["kills"] < strikes.kills and victim.is_alive():
                politely = seen["kills"] % 3 == 2
                took = _end(victim, politely=politely)
                seen["kills"] += 1
                seen["terms"] += politely
                seen["longest_end"] = max(seen["longest_end"], round(took)) if politely else seen["longest_end"]
                running[place] = start()
    if any(process.exitcode != 0 for process in running):
        raise RuntimeError(f"a process ended with {[process.exitcode for process in running]}")
    book.release_stale()  # what the last ones have left
    return seen


def accounts(ledger: str, server: LoopbackJudge, *, count: int, caps: dict[str, int]) -> dict[str, Any]:
    """Hold the ledger against what the server has answered, and against the texts."""
    book = Ledger(ledger)
    rows = list(book.rows())
    price = PRICES.cost(input_tokens=server.prompt_tokens, output_tokens=server.completion_tokens, cached_tokens=40)
    billed, charged, owned = Counter[str](), Counter[str](), Counter[str]()
    for body, what in server.log:
        if what not in _FREE:
            billed[body["messages"][-1]["content"].rpartition("Response: ")[2]] += price
    for row in rows:
        charged[row["response"]] += row["micro_usd"]
        owned[row["response"]] += row["status"] in ("labelled", "quarantined")
    spent = {name: book.spent(name) for name in caps}
    judge = judge_at(server.url)
    ceiling = max(judge.max_cost(r.prompt, r.text) for name in caps for r in questions(name, count))
    return {
        "calls": len(server.log),
        "queries": len(rows),
        "lost_replies": sum(row["status"] == "lost" for row in rows),
        "quarantined": sum(row["status"] == "quarantined" for row in rows),
        "paid": sum(found.micro_usd for found in spent.values()),
        "cap": sum(caps.values()),
        "paid_and_cap": {name: [spent[name].micro_usd, cap] for name, cap in caps.items()},
        "server_bill": sum(billed.values()),
        "reserved_at_the_end": sum(row["status"] == "reserved" for row in rows),
        "lost": sum(
            not owned[r.text]
            for name, cap in caps.items()
            for r in questions(name, count)
            if cap - spent[name].micro_usd >= ceiling
        ),
        "double_paid": sum(n - 1 for n in owned.values() if n > 1)
        + sum(bill > charged[text] for text, bill in billed.items()),
        "account_drift": _drift(book, {name: found.micro_usd for name, found in spent.items()}),
        "purse_drift": _drift(book, dict.fromkeys(("sweep storm", "lab"), sum(row["micro_usd"] for row in rows))),
        "wrong_rows": sum(row["status"] == "labelled" and row["score"] != right_score(row["response"]) for row in rows),
    }


def _drift(book: Ledger, charged: dict[str, int]) -> int:
    """Return by how many micro-dollars the accounts' own sums differ from what was charged: caps hold by the former."""
    with book.engine.connect() as connection:
        kept = dict(connection.execute(sa.text("SELECT name, micro_usd FROM accounts")).tuples().all())
    return sum(abs(kept[name] - micro_usd) for name, micro_usd in charged.items())


def main() -> None:
    """Run both storms and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer questions and kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgres", action="store_true", help="on a PostgreSQL server of its own, not on SQLite")
    given = parser.parse_args()
    count, strikes = (
        (120, Storm(6, 2, 1, 4.0, 2.0, 120.0)) if given.short else (2500, Storm(110, 22, 6, 60.0, 30.0, 1200.0))
    )
    caps = {"everything": 2_000 * count, "binding": 40 * count}
    rng, seen, started = np.random.default_rng(given.seed), Counter[str](), time.monotonic()
    print(
        f"{_PROCESSES} processes × {_WORKERS} workers, {count} questions, at most {strikes.kills} kills and "
        f"{strikes.faults} faults of the database in each of two storms"
    )
    with contextlib.ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        server = held.enter_context(LoopbackJudge(latency=0.02, faults=_FAULTS, seed=given.seed, hang=3.0))
        database = Database(folder, held.enter_context(running()) if given.postgres else None)
        for name, cap in caps.items():
            found = storm(server, database, name, count=count, cap=cap, strikes=strikes, rng=rng)
            print(f"{name:11} {dict(found)}, {time.monotonic() - started:.0f} s so far", flush=True)
            for most in ("longest_silence", "longest_end"):
                seen[most] = max(seen[most], found.pop(most, 0))
            seen += found
        facts = accounts(database.url, server, count=count, caps=caps)
        left = waiting_in(folder / "journal")
    for name, value in facts.items():
        print(f"{name:20} {value}")
    names = ("kills", "terms", "database_faults", "spells", "over_cap", "hung", "longest_silence", "longest_end")
    struck = {name: seen[name] for name in names}
    print(json.dumps({**struck, **facts, "journals_left": len(left), "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
