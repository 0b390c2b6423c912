"""Content-addressed artifact store: a Ref names a file by SHA-256; atomic writes, verified reads."""

import json
import logging
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from models.core.arrays import Float32Array
from models.core.cache import sha256_of
from models.core.data import Row, from_frame, to_frame
from models.core.errors import ConfigError, NinefoldError
from models.core.files import whole
from models.core.registry import Frozen
from tasks.engine.settings import settings

log = logging.getLogger(__name__)

_ROW_GROUP = 1 << 20  # rows, as pandas and pyarrow write tables


class Ref(Frozen):
    """A stored artifact: its path under the store's root, the SHA-256 of its bytes, and its rows where it has rows.

    A folder's Ref names a manifest, which lists each file with its own SHA-256.
    """

    uri: str = Field(pattern=r"^\w[\w-]*/[0-9a-f]{32}(\.\w+)?$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int | None = None


class DamagedArtifact(NinefoldError):
    """An artifact is missing or its bytes are not those that were stored."""


class Store:
    """Artifacts under an fsspec URL (a local folder by default), named by content, so that equal results are one file."""

    def __init__(self, url: str, cache: Path) -> None:
        self.fs, self.root = fsspec.url_to_fs(url)
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))
        self.cache = cache
        self._verified: dict[tuple[str, str], tuple[int, int]] = {}

    def make_root(self) -> None:
        """Make the store's place, with its bucket, if it is not there."""
        self.fs.makedirs(self.root if self.local else self.root.partition("/")[0], exist_ok=True)

    def write_rows(self, kind: str, rows: Sequence[Row], cls: type[Row]) -> Ref:
        """Store a table of dataclass rows as Parquet."""
        with self._scratch() as folder:
            path = folder / "table.parquet"
            to_frame(rows, cls).to_parquet(path, index=False)
            return self._put(kind, path, len(rows))

    def rows(self, ref: Ref, cls: type[Row]) -> list[Row]:
        """Return the rows of a table; raise DamagedArtifact if it is missing or damaged."""
        import pandas as pd

        return from_frame(pd.read_parquet(self.path(ref)), cls)

    def write_tables(self, kind: str, tables: Iterable[pa.Table]) -> Ref:
        """Store tables of the same columns as one, without holding them all; there must be one."""
        rows = 0
        with self._scratch() as folder, ExitStack() as written:
            path, writer = folder / "table.parquet", None
            for group in _groups(tables):
                writer = writer or written.enter_context(pq.ParquetWriter(path, group.schema))
                writer.write_table(group)
                rows += group.num_rows
            written.close()
            return self._put(kind, path, rows)

    @contextmanager
    def new_matrix(self, kind: str, shape: tuple[int, int]) -> Iterator["MatrixWriter"]:
        """Open a float32 matrix for writing row by row, memory-mapped; its `ref` is set when the block ends well."""
        with self._scratch() as folder:
            path = folder / "matrix.npy"
            writer = MatrixWriter(np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape))
            yield writer
            writer.values.flush()
            writer.stored(self._put(kind, path, shape[0]))

    def matrix(self, ref: Ref) -> Float32Array:
        """Return a stored matrix, memory-mapped read-only."""
        return np.asanyarray(np.load(self.path(ref), mmap_mode="r", allow_pickle=False))

    def write_folder(self, kind: str, folder: Path) -> Ref:
        """Store every file of a folder and a manifest of them."""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        manifest = {str(file.relative_to(folder)): self._put(kind, file, None).model_dump() for file in files}
        with self._scratch() as scratch:
            path = scratch / "manifest.json"
            path.write_text(json.dumps(manifest, sort_keys=True, indent=1))
            return self._put(kind, path, None)

    def folder(self, ref: Ref) -> Path:
        """Return a local folder with the files of a stored one, each verified."""
        target = self.cache / ref.sha256
        for name, entry in self.files(ref).items():
            if not (target / name).resolve().is_relative_to(target.resolve()):
                raise DamagedArtifact(f"{ref.uri} names a file outside its folder: {name}")
            source = self.path(entry)
            copy = target / name
            if not self._is(copy, entry):
                copy.parent.mkdir(parents=True, exist_ok=True)
                with whole(copy) as draft:
                    try:
                        os.link(source, draft)
                    except OSError:
                        shutil.copyfile(source, draft)
        return target

    def path(self, ref: Ref) -> Path:
        """Return a verified local path of an artifact, fetched first if the store is remote."""
        remote = f"{self.root}/{ref.uri}"
        local = Path(remote) if self.local else self.cache / ref.uri
        if not self.local and not self._is(local, ref):  # none here yet, or a damaged copy
            self._fetch(remote, local, ref)
        if not local.is_file():
            raise DamagedArtifact(f"artifact {ref.uri} is missing from {self.root}")
        if not self._is(local, ref):
            if not self.local:
                local.unlink()
            raise DamagedArtifact(
                f"artifact {ref.uri} in {self.root} is damaged: its SHA-256 is not {ref.sha256[:12]}…"
            )
        return local

    def _is(self, local: Path, ref: Ref) -> bool:
        """Whether a file has the artifact's bytes; they are read again only if it was modified."""
        if not local.is_file():
            return False
        stat = local.stat()
        seen = (stat.st_mtime_ns, stat.st_size)
        if self._verified.get((ref.uri, ref.sha256)) != seen:
            if sha256_of(local) != ref.sha256:
                return False
            self._verified[ref.uri, ref.sha256] = seen
        return True

    def _fetch(self, remote: str, local: Path, ref: Ref) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole(local) as draft:
                self.fs.get_file(remote, str(draft))
        except FileNotFoundError as error:
            raise DamagedArtifact(f"artifact {ref.uri} is missing from {self.root}") from error

    def verify(self, ref: Ref) -> None:
        """Raise DamagedArtifact if the artifact, or any file of a stored folder, is missing or damaged."""
        path = self.path(ref)
        if path.suffix == ".json":
            for entry in self.files(ref).values():
                self.path(entry)

    def _put(self, kind: str, file: Path, rows: int | None) -> Ref:
        """Copy a file in under a temporary name and rename it last; what is there already is left alone."""
        digest = sha256_of(file)
        ref = Ref(uri=f"{kind}/{digest[:32]}{file.suffix}", sha256=digest, rows=rows)
        final = f"{self.root}/{ref.uri}"
        try:
            self.path(ref)
            if self.local or self.fs.exists(final):  # a copy here does not say that the store has it
                return ref
        except DamagedArtifact:
            pass
        self._put_file(file, ref.uri)
        return ref

    def _put_file(self, file: Path, place: str) -> None:
        final = f"{self.root}/{place}"
        folder = final.rpartition("/")[0]
        temporary = f"{folder}/.{uuid.uuid4().hex}"
        try:
            self.fs.makedirs(folder, exist_ok=True)
            self.fs.put_file(str(file), temporary)
            self.fs.mv(temporary, final)
        except OSError as error:
            if self.fs.exists(temporary):
                self.fs.rm(temporary)
            raise OSError(
                error.errno,
                f"cannot store {place} ({file.stat().st_size:,} bytes) in {self.root}: {error.strerror or error}. "
                "Nothing half-written was left; free space or set NINEFOLD_STORE_URL, then run again",
            ) from error

    def files(self, ref: Ref) -> dict[str, Ref]:
        """Return the files of a stored folder, by their paths in it."""
        return {name: Ref(**entry) for name, entry in json.loads(self.path(ref).read_text()).items()}

    def set_alias(self, place: str, name: str, ref: Ref) -> None:
        """Let a name mean an artifact from now on, for whoever uses the store; the last one to say so is right."""
        with self._scratch() as scratch:
            path = scratch / "name.json"
            path.write_text(ref.model_dump_json())
            self._put_file(path, f"names/{place}/{_safe(name)}.json")

    def get_alias(self, place: str, name: str) -> Ref | None:
        """Return what a name means; None if it means nothing."""
        try:
            self.fs.invalidate_cache()
            return Ref.model_validate_json(self.fs.cat_file(f"{self.root}/names/{place}/{_safe(name)}.json"))
        except FileNotFoundError:
            return None

    def delete_alias(self, place: str, name: str) -> None:
        """Let a name mean nothing again."""
        self.fs.rm_file(f"{self.root}/names/{place}/{_safe(name)}.json")

    def list_aliases(self, place: str) -> list[str]:
        """Return the names that mean something."""
        self.fs.invalidate_cache()
        return sorted(Path(found).stem for found in self.fs.glob(f"{self.root}/names/{place}/*.json"))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix=".writing-") as folder:
            yield Path(folder)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in groups of the size that one table would be written in; an empty one if there are none."""
    pending: list[pa.Table] = []
    empty, yielded = None, False
    for table in tables:
        if not table.num_rows:  # its columns are of no type
            empty = table
            continue
        pending.append(table)
        while sum(one.num_rows for one in pending) >= _ROW_GROUP:
            whole = pa.concat_tables(pending)
            yield whole.slice(0, _ROW_GROUP).combine_chunks()
            pending, yielded = [whole.slice(_ROW_GROUP)], True
    if sum(one.num_rows for one in pending):
        yield pa.concat_tables(pending).combine_chunks()
    elif not yielded:
        yield empty


class MatrixWriter:
    """A matrix being written; assign rows through `values`."""

    def __init__(self, values: Float32Array) -> None:
        self.values: np.memmap[tuple[int, int], np.dtype[np.float32]] = values  # type: ignore[assignment]
        self._ref: Ref | None = None

    @property
    def ref(self) -> Ref:
        """Return where the matrix was stored; raise RuntimeError before the block of `new_matrix` has ended."""
        if self._ref is None:
            raise RuntimeError("the matrix is not stored yet")
        return self._ref

    def stored(self, ref: Ref) -> None:
        """Note where the matrix was stored."""
        self._ref = ref


def _safe(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ConfigError(f"{name!r} is no name: letters, digits, dots, dashes and underscores, and no dot in front")
    return name


def new_folder() -> "tempfile.TemporaryDirectory[str]":
    """Return a temporary folder beside the store's cache, for a trainer to write into."""
    settings().cache.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=settings().cache, prefix=".training-")


@lru_cache(maxsize=4)
def _store(url: str, cache: Path) -> Store:
    return Store(url, cache)


def store() -> Store:
    """Return the store of this process's settings."""
    return _store(settings().store_url, settings().cache)
