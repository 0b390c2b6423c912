"""What a sweep saves: 8 arms × 3 seeds through one cache and one ledger, beside the same 24 runs each in a home of its own.

The arms are four strategies at two budgets. Both are the shipped commands in processes of their own, start-up and servers
included; the packaged model is converted once, before the clock starts. The last line is JSON. An hour on two cores, half of
it with `--alone 1`; `--pool 16 --samples 2` tries it out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from flows.config.experiment import Experiment
from flows.config.loading import load, read, set_field
from flows.config.sweep import Sweep, expand
from flows.sweep import executed
from models.policies.resolve import PACKAGED, locate

STRATEGIES = ("random", "coreset_eft", "uncertainty", "shuffled")
QUICKSTART = Path("deployments/experiments/quickstart.yaml")


def main() -> None:
    """Run both and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=48, help="prompts")
    parser.add_argument("--samples", type=int, default=16, help="responses to a prompt")
    parser.add_argument("--queries", type=int, nargs=2, default=[12, 24], help="the two budgets of each strategy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--alone", type=int, default=3, help="seeds whose runs are also made alone; the rest count as they"
    )
    parser.add_argument("--home", type=Path, help="keep the sweep's home here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep = _sweep(Path(folder), given)
        arms = expand(load(Sweep, sweep)).arms
        locate(PACKAGED)
        together, seconds = _ninefold(given.home or Path(folder) / "together", "sweep", str(sweep))
        shared = json.loads((together / "reports" / "benchmark" / "sweep.json").read_text())
        print(f"{len(arms)} runs as one sweep: {seconds:.0f} s")
        alone, alone_seconds, alone_usd, same = [], [], 0, 0
        some = [arm for arm in arms if arm.seed < given.alone]
        for number, arm in enumerate(tqdm(some, desc="the same runs alone")):
            file = Path(folder) / f"{number}.yaml"
            file.write_text(yaml.safe_dump(arm.experiment.model_dump(mode="json")))
            home, took = _ninefold(Path(folder) / f"alone-{number}", "run", str(file))
            report = json.loads((home / "reports" / arm.experiment.name / "report.json").read_text())
            same += report["policy"] == next(
                a["report"]["policy"] for a in shared["arms"] if a["name"] == report["name"]
            )
            alone.append(report)
            alone_seconds.append(took)
            tqdm.write(f"{arm.experiment.name}: {took:.0f} s alone")
            alone_usd += report["micro_usd_paid"] + report["evaluation_micro_usd"]
    times = len(arms) / len(some)
    print(
        json.dumps(
            {
                "arms": len(STRATEGIES) * len(given.queries),
                "seeds": given.seeds,
                "runs": len(arms),
                "runs_made_alone": len(some),
                "same_results": same,  # of those: whose policy comes to the same figures alone
                "sweep_seconds": round(seconds, 1),
                "alone_seconds": round(times * sum(alone_seconds), 1),
                "ratio": round(seconds / sum(alone_seconds) / times, 3),
                # stages only, without start-up
                "stages_ratio": round(_work(a["report"] for a in shared["arms"]) / _work(alone) / times, 3),
                "sweep_dollars": shared["micro_usd_paid"] / 1e6,
                "alone_dollars": times * alone_usd / 1e6,
                "executed": shared["executed"],
                "executed_alone": {name: round(times * count) for name, count in executed(alone).items()},
                "threads": os.environ.get("NINEFOLD_THREADS", len(os.sched_getaffinity(0))),
            }
        )
    )


def _sweep(folder: Path, given: argparse.Namespace) -> Path:
    base: dict[str, Any] = read(Experiment, QUICKSTART)
    fields = {
        "prompts.demonstrations": 80,
        "prompts.pool": given.pool,
        "prompts.held_out": 24,
        "generation.samples": given.samples,
    }
    for field, value in fields.items():
        set_field(base, field, value)
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    sweep: dict[str, Any] = {"name": "benchmark", "base": str(folder / "base.yaml"), "presets": list(STRATEGIES)}
    place = folder / "sweep.yaml"
    sweep["grid"] = {"labelling.queries": given.queries}
    place.write_text(yaml.safe_dump(sweep | {"seeds": list(range(given.seeds)), "max_micro_usd": 1_000_000_000}))
    return place


def _ninefold(home: Path, *command: str) -> tuple[Path, float]:
    kept = ("NINEFOLD_CACHE", "NINEFOLD_THREADS")
    environment = {n: v for n, v in os.environ.items() if n in kept or not n.startswith(("PREFECT_", "NINEFOLD_"))}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *command],
        env=environment | {"NINEFOLD_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return home, time.monotonic() - started


def _work(reports: Iterable[dict[str, Any]]) -> float:
    return sum(float(stage["seconds"]) for report in reports for stage in report["stages"])


if __name__ == "__main__":
    main()
