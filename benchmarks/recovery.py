"""What a failure costs: a 2,000-row job in three steps, here and in distilabel 1.5.3.

    python benchmarks/recovery.py              # about ten minutes; makes distilabel's environment once
    python benchmarks/recovery.py --rows 200   # a look

Rows go to a judge behind an OpenAI-compatible server on loopback (10 ms a call, fifty in flight), and a last step rescales
its scores. Five cases, each in processes of their own: from nothing; again; with another factor in the last step; with a
judge that refuses one batch of rows until it is mended; and killed with SIGKILL at half. For each: the seconds of the last
process, imports and servers included; the calls that the server has answered beyond one for each row; and the rows of the
result that are wrong or missing. A process that is not done after the time-out has hung. The last line is JSON.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models.core.cache import once  # noqa: E402
from tests.support.fake_judge import LoopbackJudge, right_score  # noqa: E402

_BATCH = 50
_HUNG = 90.0  # seconds
_LATENCY = 0.01
_PEER = "distilabel[openai]==1.5.3"


class Case(NamedTuple):
    """What came of a case."""

    seconds: float
    hung: bool
    extra_calls: int
    wrong_rows: int
    missing_rows: int


class Contestant:
    """Runs the job by one implementation, in a folder of its own, against a server that counts."""

    def __init__(self, name: str, command: list[str], rows: int, folder: Path) -> None:
        self.name, self.command, self.folder = name, command, folder
        self.texts = [f"a story of many words, number {n}, worth {n * 7 % 6}" for n in range(rows)]
        folder.mkdir(parents=True)

    def run(self, server: LoopbackJudge, *, factor: float = 1.0, kill_after: int | None = None) -> tuple[float, bool]:
        """Run one process to its end, or kill it after so many answers; return its seconds, and whether it has hung."""
        job = {
            "url": server.url,
            "cache": str(self.folder / "cache"),
            "out": str(self.folder / "out.json"),
            "questions": self.texts,
            "batch": _BATCH,
            "factor": factor,
        }
        (self.folder / "job.json").write_text(json.dumps(job))
        (self.folder / "out.json").unlink(missing_ok=True)
        environment = {**os.environ, "OPENAI_API_KEY": "loopback", "NINEFOLD_HOME": str(self.folder / "home")}
        started, before = time.monotonic(), server.served["reply"]
        with (self.folder / "log.txt").open("a") as log:
            process = subprocess.Popen(
                [*self.command, str(self.folder / "job.json")],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while process.poll() is None:
            if kill_after is not None and server.served["reply"] - before >= kill_after:
                break
            if time.monotonic() - started > _HUNG:
                break
            time.sleep(0.02)
        hung = process.poll() is None and kill_after is None
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return time.monotonic() - started, hung

    def case(self, server: LoopbackJudge, last: tuple[float, bool], *, calls: int, factor: float = 1.0) -> Case:
        """Return the case whose last process has just ended; `calls` is how many it should have taken in all."""
        out = self.folder / "out.json"
        scores = json.loads(out.read_text()) if out.is_file() else {}
        right = {str(n): right_score(text) * factor for n, text in enumerate(self.texts)}
        return Case(
            seconds=round(last[0], 1),
            hung=last[1],
            extra_calls=server.served["reply"] - calls,
            wrong_rows=sum(scores[n] is not None and scores[n] != right[n] for n in scores),
            missing_rows=sum(scores.get(n) is None for n in right),
        )


class Judge(LoopbackJudge):
    """Refuses what it is told to, until it is mended."""

    refuses: frozenset[str] = frozenset()

    def _fault(self, body: bytes) -> str | None:
        text = json.loads(body)["messages"][-1]["content"]
        return "no_model" if any(part in text for part in self.refuses) else None


def cases(make: Any, rows: int) -> dict[str, Case]:  # noqa: ANN401
    """Return every case of one implementation."""
    found: dict[str, Case] = {}
    with Judge(latency=_LATENCY) as server:
        first: Contestant = make("steady")
        found["cold"] = first.case(server, first.run(server), calls=rows)
        found["cached"] = first.case(server, first.run(server), calls=rows)
        found["last step edited"] = first.case(server, first.run(server, factor=2.0), calls=rows, factor=2.0)
    with Judge(latency=_LATENCY) as server:
        second: Contestant = make("refused")
        middle = range(rows // 2, rows // 2 + _BATCH)
        server.refuses = frozenset(f"number {n}," for n in middle)
        second.run(server)
        server.refuses = frozenset()
        found["one batch refused, then mended"] = second.case(server, second.run(server), calls=rows)
    with Judge(latency=_LATENCY) as server:
        third: Contestant = make("killed")
        third.run(server, kill_after=rows // 2)
        found["kill -9 at half"] = third.case(server, third.run(server), calls=rows)
    return found


def our_job(path: Path) -> None:
    """Run the job here: three cached stages, the labels bought through the ledger."""
    from flows.runtime.environment import prepare_flows
    from flows.runtime.prefect_server import admitted

    prepare_flows()
    from prefect import flow

    from models.core.data import Label, Response, Score
    from models.core.money import NO_CAP, Prices
    from models.core.registry import digest_of
    from models.core.rubric import Rubric
    from models.oracles.chat_client import Endpoint
    from models.oracles.llm_judge import LLMJudge
    from tasks.engine.caching import stage
    from tasks.engine.store import Ref, store
    from tasks.labelling.annotate import AnnotationRequest, LabellingTerms, annotate

    job = json.loads(path.read_text())

    @stage(version=1)
    def load(questions: list[str]) -> Ref:
        rows = [Response(str(n), str(n), "tell a story", 0, text, 0, -1.0) for n, text in enumerate(questions)]
        return store().write_rows("responses", rows, Response)

    @stage(version=1)
    def rescale(labels: Ref, factor: float) -> Ref:
        rows = [Score(entry.response_id, entry.score * factor, 0.0) for entry in store().rows(labels, Label)]
        return store().write_rows("scores", rows, Score)

    @flow(name="recovery")
    def three_steps() -> Ref:
        responses = load(job["questions"])
        # the server's port is another in every case, as its name is in the peer's
        endpoint = Endpoint(model="judge", base_url=job["url"], prices=Prices(input=1, output=1))
        judge, count = LLMJudge(endpoint=endpoint, structured_output=False), len(job["questions"])
        purchase = AnnotationRequest(
            responses=responses,
            picks=None,
            oracle=judge,
            fingerprint=judge.fingerprint(),
            rubric=Rubric(),
            account=digest_of([judge.fingerprint(), responses.sha256]),
            max_queries=2 * count,
            max_micro_usd=10**9,
            max_tokens=NO_CAP,
        )
        return rescale(annotate(purchase, terms=LabellingTerms(concurrency=job["batch"])).ref, job["factor"])

    with admitted():
        rows = store().rows(three_steps(), Score)
    Path(job["out"]).write_text(json.dumps({row.response_id: row.score for row in rows}))


def _install(folder: Path) -> None:
    # `requests` is imported and not declared
    command = [str(ROOT / "scripts" / "setup.sh"), str(folder), "distilabel", "none", _PEER, "requests"]
    subprocess.run(command, check=True)


def contestants() -> dict[str, list[str]]:
    """Return the command of each implementation; the peer's environment is made once."""
    peer = once("distilabel-1.5.3", _install) / "bin" / "python"
    return {
        "ninefold": [sys.executable, str(ROOT / "benchmarks" / "recovery.py"), "--job"],
        "distilabel": [str(peer), str(ROOT / "benchmarks" / "recovery_distilabel.py")],
    }


def main() -> None:
    """Run every case of both, ours first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job is not None:
        our_job(given.job)
        return
    table: dict[str, dict[str, Case]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for name, command in contestants().items():
            table[name] = cases(
                lambda case, n=name, c=command: Contestant(n, c, given.rows, Path(scratch) / n / case), given.rows
            )
            for case, found in table[name].items():
                shown = "hung" if found.hung else f"{found.seconds:.1f} s"
                print(
                    f"{name:11} {case:31} {shown:>7}  {found.extra_calls:5} extra calls  {found.wrong_rows:4} wrong  "
                    f"{found.missing_rows:4} missing",
                    flush=True,
                )
    told = {name: {case: found._asdict() for case, found in rows.items()} for name, rows in table.items()}
    print(json.dumps({"rows": given.rows, "peer": _PEER, "cases": told}))


if __name__ == "__main__":
    main()
