"""Map a stage over shards of rows, each cached by itself."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.core import progress
from models.core.errors import ConfigError
from models.core.registry import Frozen
from tasks.engine.caching import StageResult, stage, tell_done, untold
from tasks.engine.ray_cluster import cancel_all, max_parallel
from tasks.engine.store import Ref, store

log = logging.getLogger(__name__)

R = TypeVar("R")

GROUP_COLUMN = "prompt_id"  # rows of one prompt stay together


class Shards(Frozen):
    """A table's rows in tables of their own, in order."""

    shards: tuple[Ref, ...]


def map_shards(stage_of: Callable[[Ref], R], table: Ref, *, rows: int, what: str) -> list[R]:
    """Return what a stage makes of each shard of a table, in order: of at least `rows` rows, and of whole prompts.

    One after another here, or as many at once as a Ray cluster has room for. Where one fails, what has begun is finished,
    the rest is not begun, and its error is raised; the same asked for again computes only what is missing.
    """
    if (table.rows or 0) <= rows:
        return [stage_of(table)]
    shards = split(table, rows=rows).shards
    at_once, started = min(max_parallel(), len(shards)), time.monotonic()
    with untold() as runs, progress.bar(total=len(shards), desc=what, unit="shard") as bar:
        if at_once == 1:
            made = [_counted(stage_of(shard), bar) for shard in shards]
        else:
            made = _at_once(stage_of, shards, bar, at_once)
    cached = sum(run.cached for run in runs)
    known = f", {cached} from cache" if cached else ""
    tell_done(runs[0].name if runs else what, f"{time.monotonic() - started:.1f} s ({len(shards)} shards{known})")
    return made


def _counted(made: R, bar: progress.Bar) -> R:
    bar.update()
    return made


def _at_once(stage_of: Callable[[Ref], R], shards: Sequence[Ref], bar: progress.Bar, threads: int) -> list[R]:
    with ThreadPoolExecutor(threads, thread_name_prefix="shard") as pool:
        futures = [pool.submit(copy_context().run, stage_of, shard) for shard in shards]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)
        except BaseException:  # Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            cancel_all()  # those who wait for the cluster would go on waiting
            raise
        done = [future for future in futures if not future.cancelled() and future.exception() is None]
        if len(done) < len(futures):
            log.warning("%d of %d shards are done and kept; the others are left", len(done), len(futures))
        return [future.result() for future in futures if not future.cancelled()]


@stage(version=1)
def split(table: Ref, *, rows: int) -> Shards:
    """Return a table in shards of at least `rows` rows, none of which parts the responses to a prompt."""
    with pq.ParquetFile(store().path(table)) as file:
        return Shards(shards=tuple(store().write_tables("shards", [piece]) for piece in _pieces(file, rows)))


def _pieces(file: pq.ParquetFile, rows: int) -> Iterator[pa.Table]:
    pending, ended = file.schema_arrow.empty_table(), set[str]()
    for batch in file.iter_batches(batch_size=rows):
        pending = pa.concat_tables([pending, pa.Table.from_batches([batch])])
        while (end := _end(pending, rows)) is not None:
            yield _whole(pending.slice(0, end), ended)
            pending = pending.slice(end)
    if pending.num_rows:
        yield _whole(pending, ended)


def _whole(piece: pa.Table, ended: set[str]) -> pa.Table:
    """Return a piece; raise ConfigError if some of its prompts have responses in one before: they would not be compared."""
    if GROUP_COLUMN in piece.column_names:
        prompts = set(piece.column(GROUP_COLUMN).to_pylist())
        if parted := prompts & ended:
            raise ConfigError(
                f"responses to prompt {min(parted)} stand apart in a table: sort it by prompt to have it cut"
            )
        ended |= prompts
    return piece


def _end(pending: pa.Table, rows: int) -> int | None:
    """Return where the first shard of a table ends; None if that is not seen yet."""
    if pending.num_rows <= rows:
        return None
    if GROUP_COLUMN not in pending.column_names:
        return rows
    prompt = pending.column(GROUP_COLUMN).slice(rows - 1).to_numpy()
    others = np.flatnonzero(prompt[1:] != prompt[:-1])
    return rows + int(others[0]) if len(others) else None


@stage(version=1)
def join_tables(tables: tuple[Ref, ...]) -> StageResult:
    """Return the rows of all tables as one, which is the same file as if it had been made whole."""
    return StageResult(
        ref=store().write_tables(_kind(tables), (pq.read_table(store().path(table)) for table in tables))
    )


@stage(version=1)
def join_matrices(matrices: tuple[Ref, ...], *, axis: int) -> StageResult:
    """Return matrices beside each other, along their rows (0) or their columns (1)."""
    parts = [store().matrix(matrix) for matrix in matrices]
    ends = np.cumsum([part.shape[axis] for part in parts])
    shape = (int(ends[-1]), parts[0].shape[1]) if axis == 0 else (parts[0].shape[0], int(ends[-1]))
    with store().new_matrix(_kind(matrices), shape) as whole:
        for part, end in zip(parts, ends, strict=True):
            place = slice(int(end) - part.shape[axis], int(end))
            whole.values[(place, slice(None)) if axis == 0 else (slice(None), place)] = part
    return StageResult(ref=whole.ref)


def _kind(refs: tuple[Ref, ...]) -> str:
    return refs[0].uri.partition("/")[0]


def joined(parts: Sequence[StageResult], *, summed: str) -> StageResult:
    """Return tables with their facts as one: a count is summed, and all else averaged over what it counts."""
    if len(parts) == 1:
        return parts[0]
    whole = join_tables(tuple(part.ref for part in parts))
    return StageResult(ref=whole.ref, facts=_facts([part.facts for part in parts], summed))


def _facts(each: Sequence[Mapping[str, Any]], summed: str) -> dict[str, float]:
    counts = [facts[summed] for facts in each]
    mean = {name: float(np.average([facts[name] for facts in each], weights=counts)) for name in each[0]}
    return mean | {summed: float(sum(counts))}
