"""How fast selection is, beside its peers, in one run: exact k-center, a warm start, a memory map, the pair rules.

    python benchmarks/acquisition.py                  # every case; about half an hour, most of it the peers'
    python benchmarks/acquisition.py --cases small    # a minute

Every implementation runs in a process of its own with the same number of threads, starts from the same labelled row, and is
held to the same result: the radius (largest distance to a centre) beside its time. Peers that are not installed
(`pip install 'ninefold[bench]'`) or hopeless at a size are left out by name. The last line is JSON.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.core.arrays import Float32Array

ROOT = Path(__file__).parents[1]

# A peer whose one run takes longer than this is measured as often as fits in five times as long.
_SLOW_SECONDS = 60.0


class Case(NamedTuple):
    """N rows of d dimensions, k picks, and the implementations worth waiting for."""

    size: int
    dimensions: int
    k: int
    peers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return how the case is shown."""
        return f"{self.size:,} × {self.dimensions}, k = {self.k:,}"


_FAST = ("ninefold", "numpy")
CASES = {
    "small": [Case(5_000, 384, 200, (*_FAST, "scikit-activeml", "small-text"))],
    "medium": [Case(20_000, 384, 500, (*_FAST, "scikit-activeml"))],
    "large": [Case(20_000, 768, 1_700, (*_FAST, "scikit-activeml"))],
    "huge": [Case(200_000, 384, 1_700, _FAST)],
    "mapped": [Case(1_000_000, 384, 1_000, ("ninefold",))],
}
_LEFT_OUT = {
    "small-text": "quadratic in k: minutes at 20,000 rows, hours at k = 1,700",
    "scikit-activeml": "more than ten minutes at 200,000 rows",
    "numpy": "each pick reads 1.5 GB at a million rows: ten minutes",
}


def make(case: Case, file: Path) -> None:
    """Write unit vectors in clusters of unequal size, as embeddings are, in float32, a chunk at a time."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, case.dimensions))
    share = rng.dirichlet(np.full(200, 0.5))
    vectors = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(case.size, case.dimensions))
    for begin in range(0, case.size, 50_000):
        count = min(50_000, case.size - begin)
        rows = centres[rng.choice(200, size=count, p=share)] + rng.normal(size=(count, case.dimensions))
        vectors[begin : begin + count] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    vectors.flush()


def by_ninefold(vectors: Float32Array, k: int, labelled: list[int]) -> list[int]:
    """Return ours."""
    from models.acquisition.kcenter import farthest_first

    return farthest_first(vectors, k, labelled=labelled, rng=np.random.default_rng(0))


def by_numpy(vectors: Float32Array, k: int, labelled: list[int]) -> list[int]:
    """Return the incremental loop: one matrix–vector product a pick."""
    squares = np.einsum("nd,nd->n", vectors, vectors)
    nearest = np.full(len(vectors), np.inf, dtype=np.float32)
    picked: list[int] = []
    for row in labelled:
        nearest = np.minimum(nearest, squares + squares[row] - 2.0 * (vectors @ vectors[row]))
    for _ in range(k):
        nearest[labelled + picked] = -1.0
        picked.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, squares + squares[picked[-1]] - 2.0 * (vectors @ vectors[picked[-1]]))
    return picked


def by_skactiveml(vectors: Float32Array, k: int, labelled: list[int]) -> list[int]:
    """Return scikit-activeml's CoreSet."""
    from skactiveml.pool import CoreSet

    known = np.full(len(vectors), np.nan)
    known[labelled] = 0.0
    return [int(row) for row in CoreSet(random_state=0).query(vectors, known, batch_size=k)]


def by_small_text(vectors: Float32Array, k: int, labelled: list[int]) -> list[int]:
    """Return small-text's greedy coreset."""
    from small_text.query_strategies.coresets import greedy_coreset

    rows = np.arange(len(vectors))
    return [int(row) for row in greedy_coreset(vectors, rows, np.array(labelled), k, distance_metric="euclidean")]


IMPLEMENTATIONS: dict[str, tuple[Callable[[Float32Array, int, list[int]], list[int]], str]] = {
    "ninefold": (by_ninefold, "models"),
    "numpy": (by_numpy, "numpy"),
    "scikit-activeml": (by_skactiveml, "skactiveml"),
    "small-text": (by_small_text, "small_text"),
}


def radius(vectors: Float32Array, centres: list[int]) -> float:
    """Return the largest distance of a row to its nearest centre."""
    from models.acquisition.neighbours import nearest

    chunks = range(0, len(vectors), 50_000)
    return max(float(nearest(vectors[b : b + 50_000], vectors[centres], 1).distances.max()) for b in chunks)


def child(name: str, file: Path, k: int, repeats: int, labelled: list[int]) -> None:
    """Time one implementation in this process and print what it found."""
    sys.path.insert(0, str(ROOT))
    vectors = np.load(file, mmap_mode="r" if file.stat().st_size > 2**30 else None)
    select, _ = IMPLEMENTATIONS[name]
    select(vectors[:600], 5, [0])  # imports and thread pools
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) <= 5 * _SLOW_SECONDS:
        started = time.perf_counter()
        picked = select(vectors, k, labelled)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "peak_bytes": peak, "picked": picked, "radius": radius(vectors, labelled + picked)}
    print(json.dumps(found))


def measure(name: str, file: Path, k: int, *, repeats: int, threads: int, labelled: list[int]) -> dict[str, Any]:
    """Run `child` in a process of its own."""
    limits = {v: str(threads) for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, "--child", name, "--file", str(file), "--k", str(k)]
    command += ["--repeats", str(repeats), "--labelled", *[str(row) for row in labelled]]
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"median": statistics.median(found["seconds"]), "repeats": len(found["seconds"])}


def k_center(case: Case, file: Path, *, repeats: int, threads: int) -> list[dict[str, Any]]:
    """Return one row per implementation of a case, ours first, each with its ratio to ours."""
    rows: list[dict[str, Any]] = []
    for name, (_, package) in IMPLEMENTATIONS.items():
        row: dict[str, Any] = {"case": case.name, "implementation": name}
        if name not in case.peers:
            rows.append(row | {"skipped": _LEFT_OUT[name]})
        elif name != "ninefold" and find_spec(package) is None:
            rows.append(row | {"skipped": "not installed"})
        else:
            rows.append(row | measure(name, file, case.k, repeats=repeats, threads=threads, labelled=[0]))
            ours = rows[0]
            rows[-1]["times_ours"] = rows[-1]["median"] / ours["median"]
            rows[-1]["same_radius"] = abs(rows[-1]["radius"] - ours["radius"]) <= 1e-4 * ours["radius"]
        tell(rows[-1])
    return rows


def tell(row: dict[str, Any]) -> None:
    """Print a row."""
    start = f"{row['case']:28} {row['implementation']:16}"
    if "skipped" in row:
        print(f"{start} left out: {row['skipped']}")
        return
    gate = "same radius" if row["same_radius"] else "ANOTHER RADIUS"
    print(
        f"{start} {row['median']:9.3f} s (median of {row['repeats']}) {row['times_ours']:7.1f} × ours, "
        f"{gate} {row['radius']:.4f}, {row['peak_bytes'] / 2**30:.2f} GiB"
    )


def warm_start(case: Case, file: Path, ours: dict[str, Any], *, repeats: int, threads: int) -> dict[str, Any]:
    """Return the time for the second half of the picks, the first half being labelled, against the whole."""
    half = case.k // 2
    rest = measure(
        "ninefold", file, case.k - half, repeats=repeats, threads=threads, labelled=[0, *ours["picked"][:half]]
    )
    alone = measure("ninefold", file, case.k, repeats=1, threads=1, labelled=[0])
    facts = {
        "case": case.name,
        "warm_half_over_cold_whole": rest["median"] / ours["median"],
        "same_picks": rest["picked"] == ours["picked"][half:],
        "same_picks_on_one_thread": alone["picked"] == ours["picked"],
    }
    share, same = facts["warm_half_over_cold_whole"], facts["same_picks"]
    print(f"{case.name:28} warm start: the second half takes {share:.2f} of the whole, same picks: {same}")
    print(f"{case.name:28} one thread: same picks: {facts['same_picks_on_one_thread']}")
    return facts


def pair_rules(repeats: int) -> dict[str, float]:
    """Return the median seconds of each rule for 20,000 prompts × 17 responses × 10 members."""
    from models.acquisition.pair_rules.base import CandidateScores, PairRule
    from models.core.registry import plugins_of

    rng = np.random.default_rng(0)
    grid = CandidateScores(np.ones((20_000, 17), dtype=bool), rng.normal(size=(10, 20_000, 17)))
    found = {}
    for kind in plugins_of(PairRule):
        rule, seconds = kind(), []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            rule.propose(grid, rng)
            seconds.append(time.perf_counter() - started)
        found[rule.kind_name()] = statistics.median(seconds[1:])
        print(f"20,000 prompts × 17 responses  {rule.kind_name():12} {found[rule.kind_name()]:.3f} s")
    return found


def main() -> None:
    """Run the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--k", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--labelled", type=int, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.file, given.k, given.repeats, given.labelled)
        return
    sys.path.insert(0, str(ROOT))
    print(f"{given.threads} threads, numpy {np.__version__}")
    rows: list[dict[str, Any]] = []
    warm: list[dict[str, Any]] = []
    for case in [case for name in given.cases for case in CASES[name]]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vectors.npy"
            make(case, file)
            found = k_center(case, file, repeats=given.repeats, threads=given.threads)
            rows += found
            if case.size <= 20_000:
                warm.append(warm_start(case, file, found[0], repeats=given.repeats, threads=given.threads))
    rules = pair_rules(given.repeats)
    kept = [{k: v for k, v in row.items() if k not in ("picked", "seconds")} for row in rows]
    print(json.dumps({"threads": given.threads, "k_center": kept, "warm_start": warm, "pair_rules": rules}))


if __name__ == "__main__":
    main()
