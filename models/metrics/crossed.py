"""Mean over crossed seeds and prompts, with an interval that covers new seeds and new prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.core.arrays import BoolArray, FloatArray, IntArray

Seeds = Sequence[tuple[int, ...]]

LEAST_SEEDS = 3  # for a p-value: one or two differences say nothing of how a third would fall


class Crossed(NamedTuple):
    """A mean with its 95 % interval, the two-sided p-value of a true mean of zero, and the degrees of freedom of both."""

    mean: float
    low: float
    high: float
    p: float
    df: float


class _Prompts(NamedTuple):
    """Variances of one cell: what its prompt adds and the rest, the latter's freedom, and the former's σ⁴ over its own."""

    prompt: float
    rest: float
    freedom: float
    doubt: float


def crossed_mean(table: FloatArray, seeds: Seeds | None = None) -> Crossed:
    """Return the mean over seeds of their means over prompts; `table` has shape (seeds, prompts), NaN where there is none.

    A value is mean + seed + prompt + rest, all random. With a full table of S × N, as mean squares,
    var(mean) = max(MS_seed, MS_rest)/(S·N) + max(MS_prompt − MS_rest, 0)/(S·N). In general the first part is the variance of
    the seeds' means, at least what their prompts explain, and the second what any two seeds share: the prompts' variance
    (Henderson's method III) times their overlap, which is 0 if every seed has prompts of its own.

    Student's t. Its degrees of freedom are Satterthwaite's, but for the share of the first part, which counts once and not
    squared: with three seeds and prompts that vary as much his cover .92, these .94. The first part has the freedom of
    the seeds; where MS_rest stands in, its own, from three seeds on. One seed has the interval of its prompts alone.

    `seeds` names the rows' seeds, such as (selection, training). Where two kinds are crossed, rows that share one are not
    independent: the variances of the means by either kind add up, which counts their interaction twice, with the freedom of
    the smaller kind: on the safe side. p is NaN below three seeds of any kind that varies; all but the mean is NaN where one
    value is all there is. Raises ConfigError if all rows are of the same seeds.
    """
    known = np.isfinite(table)
    rows = known.any(axis=1)
    columns = known.any(axis=0)
    values, known = table[rows][:, columns], known[rows][:, columns]
    nan = float("nan")
    if not values.size:
        return Crossed(nan, nan, nan, nan, nan)
    share = known / known.sum(axis=1, keepdims=True)
    means = (np.where(known, values, 0.0) * share).sum(axis=1)
    mean, count = float(means.mean()), len(means)
    kinds = _kinds(None if seeds is None else [seeds[row] for row in np.flatnonzero(rows).tolist()], count)
    prompts = _variances(np.where(known, values - means[:, None], 0.0), known)
    own = float((share**2).sum()) / count**2
    both = float((share.mean(axis=0) ** 2).sum()) - own  # of pairs of different rows, S − 1 for each S of `own`
    overlap = both * count / (count - 1) if count > 1 else own
    levels = [_level(means, kind) for kind in kinds]
    seed = sum(float(level.var(ddof=1)) / len(level) for level in levels)
    fewest = min(map(len, levels), default=1)
    freedom = float(fewest - 1)
    least = prompts.rest * own + prompts.prompt * (own - both / (count - 1)) if count > 1 else 0.0
    if least > seed:
        seed, freedom = least, prompts.freedom if fewest >= LEAST_SEEDS else freedom
    shared = prompts.prompt * overlap
    variance = seed + shared
    doubt = (seed * variance / freedom if seed else 0.0) + prompts.doubt * overlap**2
    if not kinds and known.sum() - count < 1:
        return Crossed(mean, nan, nan, nan, nan)
    tested = fewest >= LEAST_SEEDS
    if variance <= 0 or doubt <= 0:
        return Crossed(mean, mean, mean, (1.0 if mean == 0 else 0.0) if tested else nan, nan)
    from scipy.stats import t as student

    df, error = variance**2 / doubt, float(np.sqrt(variance))
    half = float(student.ppf(0.975, df)) * error
    p = 2 * float(student.sf(abs(mean) / error, df)) if tested else nan
    return Crossed(mean, mean - half, mean + half, p, df)


def independent_seeds(seeds: Seeds) -> int:
    """Return how many seeds runs are worth: nine of a 3 × 3 grid of selection and training seeds are three."""
    return min((int(kind.max()) + 1 for kind in _kinds(seeds, len(seeds))), default=min(1, len(seeds)))


def _kinds(seeds: Seeds | None, count: int) -> list[IntArray]:
    """Return, for each kind of seed that varies, the number of every row's; kinds that vary together are one."""
    if seeds is None:
        return [np.arange(count)] if count > 1 else []
    found: dict[bytes, IntArray] = {}
    for names in zip(*seeds, strict=True):
        first = {name: number for number, name in enumerate(dict.fromkeys(names))}
        if len(first) > 1:
            kind = np.array([first[name] for name in names], dtype=np.int64)
            found[kind.tobytes()] = kind
    if count > 1 and not found:
        raise ValueError(f"{count} rows have the same seeds {tuple(seeds[0])}: give each seed one row")
    return list(found.values())


def _level(means: FloatArray, kind: IntArray) -> FloatArray:
    return np.asarray(np.bincount(kind, means) / np.bincount(kind))


def _variances(within: FloatArray, known: BoolArray) -> _Prompts:
    """Return the variances within seeds; `within` is what is left of the table after its rows' means, 0 where unknown.

    Seeds that share too few prompts to tell the two apart leave all of it to the prompts, the larger error.
    """
    of_seed, of_prompt = known.sum(axis=1), known.sum(axis=0)
    cells = float(known.sum()) - len(of_seed)
    total = float((within**2).sum())
    left = np.where(known, within - within.sum(axis=0) / of_prompt, 0.0)
    # the additive fit: what seeds still explain after prompts, from the normal equations
    size, vectors = np.linalg.eigh(np.diag(of_seed.astype(np.float64)) - (known / of_prompt) @ known.T)
    real = size > 1e-9 * max(float(of_seed.max()), 1.0)
    explained = float(((vectors.T @ left.sum(axis=1))[real] ** 2 / size[real]).sum())
    rest = max(float((left**2).sum()) - explained, 0.0)
    freedom = float(known.sum()) - len(of_prompt) - int(real.sum())
    if cells < 1:
        return _Prompts(0.0, 0.0, 0.0, 0.0)
    if freedom < 1:
        return _Prompts(total / cells, 0.0, cells, (total / cells) ** 2 / cells)
    of_prompts, mean_square = cells - freedom, rest / freedom
    prompt = (total - rest - of_prompts * mean_square) / cells
    if of_prompts < 1 or prompt <= 0:
        return _Prompts(0.0, mean_square, freedom, 0.0)
    doubt = ((total - rest) ** 2 / of_prompts + (of_prompts * mean_square) ** 2 / freedom) / cells**2
    return _Prompts(prompt, mean_square, freedom, doubt)
