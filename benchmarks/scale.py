"""What happens at size: a ledger of ten million rows, selections among a million tuples, a sweep of thousands of arms.

    python benchmarks/scale.py ledger       # on PostgreSQL: labels a second, empty and full, in the same run
    python benchmarks/scale.py selection    # seconds and memory of each strategy, each in a process of its own
    python benchmarks/scale.py scheduler    # arms handed to Prefect on PostgreSQL, and what looking after them costs
    python benchmarks/scale.py shards       # what a shard costs beside its work, new and from the cache

All of it runs on this machine and nothing is extrapolated: docs/results/scale.md does that. Each part ends in a line of
JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.postgres import running
from tests.support.processes import ROOT, prefect_server, without_prefect

_BATCH, _BATCHES = 64, 40  # what as many calls in flight settle and reserve at once
_PATIENCE = 240  # seconds for one selection
_STRATEGIES = (  # by kind
    *("random", "margin", "least_confidence", "predictive_entropy", "ensemble_variance", "coreset_eft", "hybrid"),
    *("badge", "typiclust", "max_herding"),
)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["ledger", "selection", "scheduler", "shards", "one-selection"])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the ledger")
    parser.add_argument("--pool", type=int, default=1_000_000, help="tuples to select among")
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1_000, help="to select")
    parser.add_argument("--arms", type=int, default=2_000)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--strategy", default="", help="of one selection")
    parser.add_argument("--folder", type=Path, help="with the pool of one selection")
    given = parser.parse_args()
    if given.part == "one-selection":
        print(json.dumps(_select(given.folder, given.strategy, given.queries)))
    else:
        parts = {"ledger": _ledger, "selection": _selections, "scheduler": _scheduler, "shards": _shards}
        print(json.dumps(parts[given.part](given)))


def _ledger(given: argparse.Namespace) -> dict[str, Any]:
    """Measure a ledger on PostgreSQL while it is empty, fill it, and measure it again."""
    from models.ledger.database import recent_latencies
    from models.ledger.ledger import Ledger

    rows = given.rows
    with running() as postgres:
        ledger = Ledger(postgres.url(postgres.new_database()))
        empty = _rates(ledger, "empty")
        started = time.monotonic()
        _fill(ledger.engine, rows)
        filled = time.monotonic() - started
        full = _rates(ledger, "full")
        with ledger.engine.connect() as connection:
            sizes = [
                int(connection.scalar(sa.text(f"SELECT pg_total_relation_size('{table}')")) or 0)
                for table in ("queries", "charges")
            ]
        url = ledger.engine.url.render_as_string(hide_password=False)
        pace = {oracle: _seconds(lambda: recent_latencies(url, oracle)) for oracle in ("judge", "a new one")}  # noqa: B023
    found = {
        "rows": rows,
        "empty": empty,
        "full": full,
        "bytes_per_row": sizes[0] / rows,
        "bytes_per_charge": sizes[1] / rows,
        "pace": pace,
        "filled": filled,
    }
    print(
        f"{rows:,} rows in {filled:.0f} s, {sizes[0] / rows:.0f} bytes each and {sizes[1] / rows:.0f} charged; labels a "
        f"second {empty['labels']:.0f} → {full['labels']:.0f}; open {full['open']:.2f} s, recover {full['recover']:.3f} s, "
        f"owned labels a second {full['owned']:.0f}, an oracle's pace {pace} s",
        flush=True,
    )
    return found


def _fill(engine: sa.Engine, rows: int) -> None:
    """Write labelled rows with texts of a realistic length, and a charge for each, as the database makes them fastest."""
    statement = """
        INSERT INTO queries (oracle, criterion, prompt_hash, response_hash, status, score, raw, tokens, micro_usd, seconds,
                             prompt, response, account, billed_on_failure, reserved_at, settled_at)
        SELECT 'judge', 'rubric', md5(i::text), md5(i::text), 'labelled', i % 6, 'Score: 3', 600, 150, 0.8,
               repeat(md5((i % 1000)::text), 4), repeat(md5((i % 1000)::text), 10), 'account-' || (i % 200), true,
               1.7e9 + i, 1.7e9 + i
        FROM generate_series(1, :n) AS i
    """
    with engine.begin() as connection:
        connection.execute(sa.text(statement), {"n": rows})
        connection.exec_driver_sql(
            "INSERT INTO charges (account, query_id, micro_usd, bought, tokens)"
            " SELECT account, id, micro_usd, true, tokens FROM queries WHERE account LIKE 'account-%%'"
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE queries")
        connection.exec_driver_sql("VACUUM ANALYZE charges")


def _rates(ledger: Any, account: str) -> dict[str, float]:  # noqa: ANN401
    """Return labels a second through `settle_and_reserve`, new and owned ones, and the seconds to open and to recover."""
    from models.core.money import Amount
    from models.ledger.entries import QueryRequest, QueryResult, Reservation
    from models.ledger.ledger import Ledger
    from models.ledger.tables import Question

    def asked(batch: int) -> list[QueryRequest]:
        made = [Question("judge", account, f"prompt {batch} " * 12, f"response {n} " * 40) for n in range(_BATCH)]
        return [QueryRequest(question, Amount(1_000, 1_000), True) for question in made]

    ledger.open_account(account, max_queries=10**9, max_micro_usd=10**12)
    done: list[QueryResult] = []
    started = time.monotonic()
    for batch in range(_BATCHES):
        _, outcomes = ledger.settle_and_reserve(account, done, asked(batch))
        assert all(isinstance(outcome, Reservation) for outcome in outcomes)  # noqa: S101
        done = [
            QueryResult(outcome, status="labelled", score=3.0, raw="Score: 3", tokens=600, micro_usd=150, seconds=0.8)
            for outcome in outcomes
            if isinstance(outcome, Reservation)
        ]
    ledger.settle_and_reserve(account, done, [])
    bought = time.monotonic() - started
    again = f"{account}, again"
    ledger.open_account(again, max_queries=10**9, max_micro_usd=10**12)
    started = time.monotonic()
    for batch in range(_BATCHES):
        ledger.settle_and_reserve(again, [], asked(batch))
    owned = time.monotonic() - started
    calls = _BATCH * _BATCHES
    opened = _seconds(lambda: Ledger(str(ledger.engine.url.render_as_string(hide_password=False))))
    return {
        "labels": calls / bought,
        "owned": calls / owned,
        "open": opened,
        "recover": _seconds(ledger.release_stale),
        "spent": _seconds(lambda: ledger.spent(account)),
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _selections(given: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        vectors = np.lib.format.open_memmap(
            f"{folder}/vectors.npy", mode="w+", dtype=np.float32, shape=(given.pool, given.dimensions)
        )
        for start in range(0, given.pool, 100_000):  # written without holding it
            stop = min(start + 100_000, given.pool)
            vectors[start:stop] = rng.standard_normal((stop - start, given.dimensions), dtype=np.float32)
        vectors.flush()
        for name in _STRATEGIES:
            command = [sys.executable, __file__, "one-selection", "--folder", folder, "--strategy", name]
            try:
                done = subprocess.run(
                    [*command, "--queries", str(given.queries)], capture_output=True, text=True, timeout=_PATIENCE
                )
                row = json.loads(done.stdout) if not done.returncode else {"failed": done.stderr.strip()[-200:]}
            except subprocess.TimeoutExpired:
                row = {"failed": f"more than {_PATIENCE} s"}
            found.append({"strategy": name} | row)
            said = row.get("failed") or f"{row['seconds']:.1f} s, {row['gib']:.1f} GiB at most"
            print(f"{name}: {given.queries:,} of {given.pool:,} in {said}", flush=True)
    return found


def _select(folder: Path, kind: str, queries: int) -> dict[str, float]:
    """Return the seconds of one selection and the most memory that it took, the pool's own arrays included."""
    from pydantic import TypeAdapter

    from models.acquisition.base import Acquisition, Pool
    from models.core.registry import OneOf

    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    size, rng = len(vectors), np.random.default_rng(1)
    strategy = TypeAdapter(Annotated[Acquisition, OneOf()]).validate_python({"kind": kind})
    pool = Pool(
        ids=[f"r{number:08}" for number in range(size)],
        prompt=np.arange(size, dtype=np.int64) // 8,
        unavailable=np.zeros(size, dtype=np.bool_),
        labelled=np.zeros(size, dtype=np.bool_),
        vectors=vectors,
        logprob=-rng.random(size) * 100,
        tokens=rng.integers(20, 200, size),
        reference_logprob=-rng.random(size) * 100,
        scores=rng.normal(3.0, 1.0, (8, size)),
        cost=np.ones(size),
        money=float(queries),
    )
    started = time.monotonic()
    picks = strategy.select(pool, queries, np.random.default_rng(2))
    seconds = time.monotonic() - started
    assert len({pick.response_id for pick in picks}) == queries  # noqa: S101
    return {"seconds": seconds, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def _by_prefect(script: str, number: int) -> dict[str, float]:
    """Return what a script says in its last line, that is run beside Prefect's server on PostgreSQL."""
    with running() as postgres, tempfile.TemporaryDirectory() as folder:
        database = postgres.url(postgres.new_database(), driver="asyncpg")
        file = Path(folder, "script.py")
        file.write_text(script)
        with prefect_server(database, Path(folder)) as api:
            own = {"PREFECT_API_URL": api, "PREFECT_HOME": folder, "NINEFOLD_HOME": folder, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, str(file), str(number)],
                env=without_prefect() | own,
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
    if done.returncode:
        raise ChildProcessError(done.stderr[-3000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _shards(given: argparse.Namespace) -> dict[str, float]:
    """Return what a shard costs that does nothing: its task in Prefect, its lock, its table and its kept result."""
    found = _by_prefect(_NO_WORK, given.shards)
    print(
        f"{given.shards:,} shards: {found['split']:.3f} s to split, {found['new']:.3f} s new, {found['again']:.3f} s again"
    )
    return found


_NO_WORK = """
import json, sys, time
from prefect import flow
from models.core.data import Prompt
from tasks.engine.caching import stage
from tasks.engine.shards import map_shards, split
from tasks.engine.store import Ref, store

@stage(version=1, told=False)
def counted(shard: Ref) -> int:
    return shard.rows or 0

@flow
def timed(table: Ref) -> list[float]:
    times = [time.monotonic()]
    split(table, rows=1)
    times.append(time.monotonic())
    for _ in range(2):
        assert sum(map_shards(counted, table, rows=1, what="shards")) == table.rows
        times.append(time.monotonic())
    return [(after - before) / table.rows for before, after in zip(times, times[1:])]

table = store().write_rows("prompts", [Prompt.of(f"prompt {n}") for n in range(int(sys.argv[1]))], Prompt)
print(json.dumps(dict(zip(("split", "new", "again"), timed(table)))))
"""


def _scheduler(given: argparse.Namespace) -> dict[str, float]:
    """Return what handing arms to Prefect's server costs, and what one look at all of them does."""
    found = _by_prefect(_HAND_OUT, given.arms)
    print(f"{given.arms:,} arms: {found['per_second']:.0f} handed out a second, one look at all {found['look']:.2f} s")
    return found


_HAND_OUT = """
import json, sys, time
from prefect import get_client
from flows.runtime.dispatch import _read, _resolve
from flows.config.loading import load
from flows.config.experiment import Experiment
from flows.runtime.workers import arms_deployment
from models.ledger.purses import Purse
from pathlib import Path
x, arms = load(Experiment, Path("deployments/experiments/quickstart.yaml")), int(sys.argv[1])
with get_client(sync_client=True) as client:
    deployment, sweep = arms_deployment(client), ("bench", Purse(name="sweep bench", micro_usd=1))
    started = time.monotonic()
    runs = [_resolve(deployment, x.model_copy(update={"name": f"arm-{n}"}), sweep) for n in range(arms)]
    handed = time.monotonic() - started
    started = time.monotonic()
    assert len(_read(client, {"id": {"any_": [run.id for run in runs]}})) == arms
    print(json.dumps({"arms": arms, "per_second": arms / handed, "look": time.monotonic() - started}))
"""


if __name__ == "__main__":
    main()
