"""Four processes buy labels from a server that fails in nine ways, killed at random: what is lost, what is paid twice?

    make chaos                                  # a few minutes, at least 50 kills
    python benchmarks/labelling_chaos.py --short          # half a minute; a test runs it

Two accounts, one after the other: one with money for everything, one whose cap binds. The ledger is then held against what
the server itself has answered. A reply that never arrived counts as paid once, at its ceiling, and is asked again while
there is money. The last line is JSON: `kills`; `paid` and `cap`, micro-dollars of both accounts; `lost`, questions without
an answer although there was money; `double_paid`, questions that the server has billed for more than the ledger knows, and
labels owned twice; `wrong_rows`, labels that are not what the server says of the text; `over_cap`, times that an account was
seen above its cap.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models.core.data import Response  # noqa: E402
from models.core.money import Prices  # noqa: E402
from tests.support.fake_judge import LoopbackJudge, right_score  # noqa: E402

_PROCESSES, _WORKERS = 4, 8
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
}
_FREE = {"rate_limit", "error"}  # what a server does not bill
PRICES = Prices(input=1_000_000, output=2_000_000)


def questions(account: str, count: int) -> list[Response]:
    """Return distinct tuples to ask about, others for each account."""
    return [Response(f"r{n}", "p", "tell a story", n, f"story {account}, chapter {n}", 5, -9.0) for n in range(count)]


def buy(url: str, ledger: str, account: str, count: int, cap: int) -> None:
    """Buy labels of every question, in a process of its own, until all are there or the money is spent."""
    from models.core.rubric import Rubric
    from models.labelling.label import LabellingSession, LabellingStopped, label_responses
    from models.ledger.ledger import Ledger
    from models.oracles.chat_client import Endpoint
    from models.oracles.llm_judge import LLMJudge

    os.environ["OPENAI_API_KEY"] = "loopback"
    model = Endpoint(model="judge", base_url=url, prices=PRICES, max_tokens=32, timeout=1.5)
    judge = LLMJudge(endpoint=model, attempts=3)
    session = LabellingSession(Ledger(ledger), judge, Rubric(name="warmth"), account)
    while True:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # four progress bars at once
                label_responses(
                    questions(account, count), session, max_queries=10 * count, max_micro_usd=cap, concurrency=_WORKERS
                )
        except LabellingStopped:
            continue  # what has failed too often in a row is begun again, as the user would
        return


def storm(
    url: str, ledger: str, account: str, *, count: int, cap: int, kills: int, rng: np.random.Generator
) -> Counter[str]:
    """Run the four processes to the end, killing and replacing them; return the kills and the times above the cap."""
    from models.ledger.ledger import Ledger

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openai", "models.labelling.label", "models.oracles.llm_judge", "pyrate_limiter"])

    def start() -> ForkServerProcess:
        process = context.Process(target=buy, args=(url, ledger, account, count, cap))
        process.start()
        return process

    seen: Counter[str] = Counter()
    book = Ledger(ledger)
    running = [start() for _ in range(_PROCESSES)]
    while any(process.is_alive() for process in running):
        time.sleep(rng.uniform(0.05, 0.6))
        seen["over_cap"] += book.spent(account).micro_usd > cap
        place = int(rng.integers(len(running)))
        victim = running[place]
        if seen["kills"] < kills and victim.pid is not None and victim.is_alive():
            os.kill(victim.pid, signal.SIGKILL)
            victim.join()
            seen["kills"] += 1
            running[place] = start()
    if any(process.exitcode != 0 for process in running):
        raise RuntimeError(f"a process ended with {[process.exitcode for process in running]}")
    return seen


def accounts(ledger: str, server: LoopbackJudge, *, count: int, caps: dict[str, int]) -> dict[str, Any]:
    """Hold the ledger against what the server has answered, and against the texts."""
    from models.ledger.ledger import Ledger

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
    ceiling = max(row["micro_usd"] for row in rows if row["status"] == "lost")
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
        "wrong_rows": sum(row["status"] == "labelled" and row["score"] != right_score(row["response"]) for row in rows),
    }


def main() -> None:
    """Run both storms and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="fewer questions and kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ledger", metavar="URL", help="an empty database; a new SQLite file if not given")
    given = parser.parse_args()
    count, kills = (120, 4) if given.short else (1500, 60)
    caps = {"everything": 2_000 * count, "binding": 40 * count}
    rng, seen, started = np.random.default_rng(given.seed), Counter[str](), time.monotonic()
    print(
        f"{_PROCESSES} processes × {_WORKERS} workers, {count} questions and at most {kills} kills in each of two storms"
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        LoopbackJudge(latency=0.02, faults=_FAULTS, seed=given.seed, hang=3.0) as server,
    ):
        ledger = given.ledger or f"sqlite:///{folder}/ledger.sqlite"
        for name, cap in caps.items():
            found = storm(server.url, ledger, name, count=count, cap=cap, kills=kills, rng=rng)
            print(f"{name:11} {found['kills']} kills, {time.monotonic() - started:.0f} s so far", flush=True)
            seen += found
        facts = accounts(ledger, server, count=count, caps=caps)
    for name, value in facts.items():
        print(f"{name:20} {value}")
    print(
        json.dumps(
            {"kills": seen["kills"], "over_cap": seen["over_cap"], **facts, "seconds": time.monotonic() - started}
        )
    )


if __name__ == "__main__":
    main()
