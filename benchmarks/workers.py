"""What more workers bring where labelling waits for the oracle: one sweep by 1, 2 and 4 of them, each in a home of its own.

Store, ledger, MLflow and Prefect are a real S3 server, PostgreSQL and Prefect server on this machine; the judge, on
loopback, takes its time over every question and is asked one at a time by each arm. The model is tiny, so that labelling is
what takes long. Beside the measured time stands the least there can be: the arms' waiting, in as many lanes as there are
workers. The last line is JSON. A quarter of an hour on two cores.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.ledger.ledger import Ledger
from tests.support.fake_judge import LoopbackJudge
from tests.support.postgres import Postgres, running
from tests.support.processes import ROOT, prefect_server, s3_server, without_prefect
from tests.support.tiny_model import write_tiny_model

ARMS = 4
NOUNS = ("film", "story", "tale", "plot", "cast", "ending", "music", "acting", "director", "mess")
ADJECTIVES = ("warm", "witty", "dull", "boring", "good", "bad", "fresh", "tired", "clever", "silly")


def main() -> None:
    """Run the sweep with each number of workers, on stores of its own, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--queries", type=int, default=30, help="of each of the four arms")
    parser.add_argument("--latency", type=float, default=3.0, help="seconds that the judge takes")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with ExitStack() as up, tempfile.TemporaryDirectory() as scratch:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        judge = up.enter_context(LoopbackJudge(latency=given.latency))
        postgres, bucket = up.enter_context(running()), up.enter_context(s3_server("x", "x"))
        for workers in given.workers:
            folder = Path(scratch) / f"{workers}"
            _write(folder, judge.url, given.queries)
            found = _sweep(folder, workers, postgres, f"{bucket}/{uuid4().hex}")
            # arms share some of their questions
            found |= {"workers": workers, "least": found["labels"] * given.latency / min(workers, ARMS)}
            rows.append(found)
            print(
                f"{workers} workers: labels in {found['labelling']:.0f} s (the least: {found['least']:.0f} s), the sweep in "
                f"{found['sweep']:.0f} s, {rows[0]['sweep'] / found['sweep']:.2f} × the first",
                flush=True,
            )
    print(json.dumps(rows))


def _sweep(folder: Path, workers: int, postgres: Postgres, store: str) -> dict[str, float]:
    """Return the seconds of the whole sweep, and from its first question to the last label that an evaluator learns from."""
    ledger = postgres.url(postgres.new_database())
    database = postgres.url(postgres.new_database(), driver="asyncpg")
    with prefect_server(database, folder) as api, ExitStack() as working:
        environment = without_prefect() | {
            "NINEFOLD_STORE_URL": store,
            "NINEFOLD_LEDGER_URL": ledger,
            "NINEFOLD_MLFLOW_URI": postgres.url(postgres.new_database()),
            "PREFECT_API_URL": api,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "JUDGE_KEY": "none",
        }
        for number in range(workers):
            working.enter_context(_ninefold(folder, f"worker-{number}", environment, "worker"))
        time.sleep(15)  # until they are there
        started = time.monotonic()
        with _ninefold(folder, "dispatcher", environment, "sweep", "sweep.yaml", "--workers") as sweep:
            if sweep.wait():
                raise ChildProcessError((folder / "dispatcher.log").read_text()[-3000:])
        took = time.monotonic() - started
    rows = [row for row in Ledger(ledger).rows() if row["status"] == "labelled" and row["micro_usd"]]
    first = min(row["settled_at"] - row["seconds"] for row in rows)
    return {"sweep": took, "labelling": max(row["settled_at"] for row in rows) - first, "labels": len(rows)}


def _write(folder: Path, judge: str, queries: int) -> None:
    """Write the model, the prompts, the experiment and the sweep; nothing but labelling takes long."""
    folder.mkdir()
    write_tiny_model(folder / "model")
    prompts = [f"the {adjective} {noun} is" for adjective in ADJECTIVES for noun in NOUNS]
    (folder / "pool.txt").write_text("\n".join(prompts[:60]))
    (folder / "held.txt").write_text("\n".join(prompts[60:72]))
    seed = [{"prompt": prompt, "response": f"{ADJECTIVES[n % 10]} and warm"} for n, prompt in enumerate(prompts[72:])]
    (folder / "seed.jsonl").write_text("\n".join(json.dumps(row) for row in seed))
    endpoint = {
        "model": "judge",
        "base_url": judge,
        "api_key_env": "JUDGE_KEY",
        "prices": {"input": 1_000_000, "output": 2_000_000},
    }
    train = {"learning_rate": 3e-3, "batch_size": 8, "max_length": 64, "lora": {"r": 4, "alpha": 8}}
    experiment = {
        "name": "base",
        "prompts": {"kind": "files", "pool": "pool.txt", "held_out": "held.txt", "demonstrations": "seed.jsonl"},
        "policy": {
            "model": "./model",
            "template": "plain",
            "dtype": "float32",
            "max_prompt_tokens": 32,
            "sft": train,
        },
        "generation": {"kind": "transformers", "samples": 4, "max_new_tokens": 8, "batch_size": 32},
        "embedding": {"kind": "policy", "pooling": "mean"},
        "labelling": {
            "oracle": {"kind": "llm_judge", "endpoint": endpoint},
            "rubric": {"name": "warmth"},
            "queries": queries,
            "max_micro_usd": 10_000_000,
            "concurrency": 1,
        },
        "evaluator": {"kind": "linear", "ensemble": 4},
        "dpo": train,
        # measuring waits for nobody here
        "evaluation": {"samples": 2, "oracle": {"kind": "gold", "micro_usd": 0}, "max_micro_usd": 1_000_000},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(experiment))
    sweep: dict[str, Any] = {"name": "workers", "base": "base.yaml", "presets": ["random"], "seeds": list(range(ARMS))}
    sweep |= {"training_seeds": [0], "max_micro_usd": 100_000_000}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


@contextmanager
def _ninefold(
    folder: Path, name: str, environment: dict[str, str], *arguments: str
) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "flows.cli.main", *arguments]
    places = environment | {"NINEFOLD_HOME": f"home-{name}"}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=places, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
