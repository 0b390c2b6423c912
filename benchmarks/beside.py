"""What work beside work costs: torch's threads wait for each other by spinning, which a busy core turns into waste.

    python benchmarks/beside.py                      # every setting below, about eight minutes
    python benchmarks/beside.py --settings default ours --seconds 20

The work is that of a run: reading and writing steps of the packaged model at 64 rows, and trainings' forward and backward
passes. It is done alone, beside one core that is kept busy, and twice at once; each in processes of its own. A setting is
a value of OpenMP's environment. The last line is JSON: rounds per second, and for each setting what it costs alone against
`default`, and how many times longer the work takes beside a busy core and beside itself.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flows.runtime.environment import WAITING  # noqa: E402

SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    **{f"spin {count}": {"GOMP_SPINCOUNT": str(count)} for count in (1_000, 5_000, 20_000, 50_000)},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "ours": dict(WAITING),
}
_BUSY = "while True: pass"


def work(seconds: float) -> int:
    """Do rounds of a run's work for so many seconds and return how many."""
    import torch

    from models.policies.checkpoint import Checkpoint
    from models.policies.resolve import locate

    model = Checkpoint(locate("smollm2-135m-instruct").source).load_copy().model
    rows = torch.randint(10, 1000, (64, 24))
    few = rows[:4]

    def step() -> None:
        with torch.inference_mode():
            kept = model(rows, use_cache=True, logits_to_keep=1).past_key_values
            for _ in range(4):
                model(rows[:, :1], past_key_values=kept, use_cache=True, logits_to_keep=1).logits.float().softmax(-1)
        model(few, labels=few).loss.backward()
        model.zero_grad(set_to_none=True)

    step()
    print("ready", flush=True)
    sys.stdin.readline()
    done, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        step()
        done += 1
    return done


def measure(setting: dict[str, str], seconds: float, *, copies: int, busy: bool) -> float:
    """Return rounds per second of each of so many copies of the work at once, maybe beside a busy core."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, __file__, "--work", str(seconds)]
    with ExitStack() as stack:
        copied = [
            stack.enter_context(
                subprocess.Popen(
                    command, env=environment | setting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(copies)
        ]
        for copy in copied:
            assert copy.stdout is not None  # noqa: S101 - it was asked for
            copy.stdout.readline()
        beside = subprocess.Popen([sys.executable, "-c", _BUSY]) if busy else None
        try:
            return sum(int(copy.communicate("go\n")[0]) for copy in copied) / seconds / copies
        finally:
            if beside is not None:
                beside.kill()
                beside.wait()


def main() -> None:
    """Measure every setting and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        print(work(given.work))
        return
    found: dict[str, dict[str, float]] = {}
    for name in given.settings:
        alone, beside, twice = (
            measure(SETTINGS[name], given.seconds, copies=copies, busy=busy)
            for copies, busy in ((1, False), (1, True), (2, False))
        )
        first = found.get("default", {}).get("alone", alone)
        found[name] = {
            "alone": round(alone, 3),
            "costs_alone": round(first / alone - 1, 3),
            "times_beside_busy_core": round(alone / beside, 2),
            "times_twice_at_once": round(alone / twice, 2),
        }
        print(f"{name:12} {found[name]}", flush=True)
    print(json.dumps({"cores": os.cpu_count(), "seconds": given.seconds, "settings": found}))


if __name__ == "__main__":
    main()
