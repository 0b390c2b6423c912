"""Journal on disk: what a ledger could not book while its database was away, for the next start to book."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from models.core.errors import ConfigError
from models.core.money import Amount
from models.ledger.entries import Closing, Loss, QueryResult, Release, Reservation

log = logging.getLogger(__name__)

_PER_REPLY = 1 << 16  # bytes set aside for each call in flight: a reply of 4,000 tokens has about 16,000
_LEAST, _MOST = 1 << 18, 1 << 26
_KINDS: dict[str, type[Closing]] = {"settle": QueryResult, "release": Release, "lose": Loss}


class Kept(NamedTuple):
    """What a journal holds: how calls ended that the database has not taken, and how many lines cannot be read."""

    file: Path
    closings: list[Closing]
    unreadable: int

    def remove(self, *, failed: int) -> None:
        """Remove the file, whose entries are booked; one with lines that could not be stays, under another name."""
        if self.unreadable or failed:
            self.file.rename(aside := self.file.with_suffix(".unreadable"))
            log.error("%d lines of %s could not be booked: look at them by hand", self.unreadable + failed, aside)
        else:
            self.file.unlink()


class Journal:
    """A file of one labelling, named by its holder; locked while it goes on, and gone when it ends and nothing is in it.

    Its room on the disk is taken before any query is bought, so that a disk that fills up meanwhile has place for the
    replies. Raises ConfigError where there is none.
    """

    def __init__(self, folder: Path, ledger: str, *, holder: str, in_flight: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.file, self._descriptor = _new_file(folder, ledger, holder)
        self._end = 0
        size = min(max(in_flight * _PER_REPLY, _LEAST), _MOST)
        try:
            _take(self._descriptor, size)
        except OSError as error:
            self.close()
            raise ConfigError(
                f"{folder} has no room for {size / 2**20:.1f} MiB, where replies are kept if the ledger's database cannot "
                f"take them: {error.strerror}. Nothing was asked; free space, then run again"
            ) from error

    def append(self, closing: Closing) -> None:
        """Keep how a call has ended; it is on the disk when this returns."""
        line = json.dumps(_entry(closing), default=_plain).encode() + b"\n"
        written = os.pwrite(self._descriptor, line, self._end)
        if written != len(line):
            raise OSError(f"{self.file} took {written} of {len(line)} bytes")
        os.fsync(self._descriptor)
        self._end += len(line)

    def close(self) -> None:
        """Let the file go: to whoever books what is in it, or for good."""
        if self._end == 0:
            self.file.unlink(missing_ok=True)
        descriptor, self._descriptor = self._descriptor, -1  # whoever appends later must not write into another file
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may hold a copy
        os.close(descriptor)


def journals(folder: Path, ledger: str) -> Iterator[Kept]:
    """Yield what was kept of a ledger by labellings that are over; the file is locked until the next one is asked for."""
    for file in sorted(folder.glob(f"{_name_of(ledger)}-*.jsonl")):
        with suppress(FileNotFoundError), file.open("rb") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody is writing it, or booking what is in it
                continue
            if file.exists():
                yield _read(file, opened.read())


def has_journal(folder: Path, ledger: str, holder: str) -> bool:
    """Whether a journal of a holder lies here, whoever has it open: what it holds may be booked yet."""
    return any(folder.glob(f"{_name_of(ledger)}-{_name_of(holder)}-*.jsonl"))


@contextmanager
def booking(folder: Path) -> Iterator[None]:
    """Be the only one who books what journals in a folder hold, as soon as nobody else does."""
    with (folder / "booking.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def waiting_in(folder: Path) -> list[Path]:
    """Return the journals of any ledger that hold something, but for those that a living labelling writes."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        with suppress(FileNotFoundError, BlockingIOError), file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if opened.read(1).strip(b"\0"):
                found.append(file)
    return found


def _read(file: Path, written: bytes) -> Kept:
    """Return what a journal's lines say; one that was cut off while it was written has never been acknowledged."""
    *lines, _ = written.rstrip(b"\0").split(b"\n")
    found = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found.append(_closing(json.loads(line)))
    return Kept(file, found, len(lines) - len(found))


def _entry(closing: Closing) -> dict[str, Any]:
    kind = next(name for name, of in _KINDS.items() if isinstance(closing, of))
    return {"what": kind, **closing._asdict()}


def _plain(value: object) -> object:
    """Return numpy's number as Python's, and anything else as it is written."""
    return value.item() if hasattr(value, "item") else str(value)


def _closing(entry: dict[str, Any]) -> Closing:
    kind = _KINDS[entry.pop("what")]
    reservation = Reservation(*entry.pop("reservation"))
    if kind is Loss and entry["most"] is not None:
        entry["most"] = Amount(*entry["most"])
    closing = kind(reservation, **entry)
    if isinstance(closing, QueryResult) and not isinstance(closing.raw, str):
        raise TypeError("a reply is a text")
    return closing


def _name_of(ledger: str) -> str:
    return hashlib.sha256(ledger.encode()).hexdigest()[:12]


def _new_file(folder: Path, ledger: str, holder: str) -> tuple[Path, int]:
    """Return a new file and its descriptor, locked."""
    while True:
        file = folder / f"{_name_of(ledger)}-{_name_of(holder)}-{uuid4().hex[:8]}.jsonl"
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return file, descriptor
        os.close(descriptor)  # between these lines somebody has found it empty, and removed it


def _take(descriptor: int, size: int) -> None:
    """Take room on the disk for a file."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for begin in range(0, size, 1 << 20):  # as macOS has no such call
        os.pwrite(descriptor, bytes(min(1 << 20, size - begin)), begin)
    os.fsync(descriptor)
