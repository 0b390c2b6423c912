"""Progress bars: one line at the foot of a terminal; in a log, one line each half minute."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from threading import RLock
from typing import Any, Protocol, TextIO, cast

from tqdm import tqdm

log = logging.getLogger(__name__)

QUIET_SECONDS = 30.0  # between lines of a log about one piece of work; what takes less is told by nothing
_LEAST = 50  # columns of a bar: where less is left, what it is a part of is not named
_ERASE = "\r\x1b[K"


def on_terminal() -> bool:
    """Whether people look at stderr, on a terminal that can take a line back."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class _Part(Protocol):
    """A part of the line at the foot: whole where it is the innermost, else in short."""

    def whole(self, columns: int) -> str: ...

    def short(self) -> str: ...


class _Heading:
    def __init__(self, text: str) -> None:
        self.text = text

    def whole(self, columns: int) -> str:
        return self.text[:columns]

    def short(self) -> str:
        return self.text


class _Foot:
    """The last line of the terminal: what is at work now, from the outermost to the innermost."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._parts: list[_Part] = []
        self._drawn = False
        self._open = False  # somebody else's line has not ended

    def enter(self, part: _Part) -> None:
        with self._lock:
            self._parts.append(part)
            self.draw()

    def leave(self, part: _Part) -> None:
        with self._lock:
            self._parts = [other for other in self._parts if other is not part]
            self.erase()
            self.draw()

    def draw(self) -> None:
        with self._lock:
            if self._parts and not self._open:
                self._put(_ERASE + self._line(_columns() - 1))
                self._drawn = True

    def erase(self) -> None:
        with self._lock:
            if self._drawn:
                self._put(_ERASE)
                self._drawn = False

    def above(self, stream: TextIO, text: str) -> int:
        """Write somebody else's text where the line stands, and draw the line below it."""
        with self._lock:
            self.erase()
            written = stream.write(text)
            if text:
                self._open = not text.endswith("\n")
            if self._parts and not self._open:
                stream.flush()
                self.draw()
            return written

    def _line(self, columns: int) -> str:
        *outer, inner = self._parts
        before = [f"{part.short()}  " for part in outer]
        while before and columns - sum(map(len, before)) < _LEAST:
            del before[0]
        return "".join(before) + inner.whole(columns - sum(map(len, before)))

    @staticmethod
    def _put(text: str) -> None:
        stream = sys.stderr.stream if isinstance(sys.stderr, _Above) else sys.stderr
        stream.write(text)
        stream.flush()


class _Above:
    """A standard stream whose text appears above the line at the foot, which would be broken by it otherwise."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return _FOOT.above(self.stream, text)

    def writelines(self, lines: Iterator[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.stream, name)


_FOOT = _Foot()


def keep_foot() -> None:
    """Put everything that this process prints on a terminal, by whichever library, above the line at the foot."""
    if not on_terminal():
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream.isatty() and not isinstance(stream, _Above):
            setattr(sys, name, cast(TextIO, _Above(stream)))


@contextmanager
def heading(text: str) -> Iterator[None]:
    """Say at the foot of a terminal what is at work during the block; its bars appear beside it."""
    if not on_terminal():
        yield
        return
    part = _Heading(text)
    _FOOT.enter(part)
    try:
        yield
    finally:
        _FOOT.leave(part)


class Bar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that shares the line at the foot; without a terminal it logs a line each half minute."""

    monitor_interval = 0  # no thread: who works tells how far it is

    def __init__(self, total: float | None, desc: str, unit: str, *, disable: bool = False) -> None:
        self._shown = not disable and on_terminal()
        self._told = time.monotonic()
        self.units = f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
        # tqdm counts and formats; its own way to the terminal leads nowhere
        super().__init__(
            total=total,
            desc=desc,
            unit=unit,
            disable=disable,
            file=StringIO(),
            miniters=1,
            mininterval=0.1 if self._shown else 0.0,
            leave=False,
            ascii=False,
            bar_format=f"{{desc}}  {{bar}}  {{n_fmt}}/{{total_fmt}} {self.units}  {{elapsed}} < {{remaining}}{{postfix}}",
        )
        if self._shown:
            _FOOT.enter(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show how far the work is, or log it if that was not done lately; tqdm calls this when it is time to."""
        del pos
        if msg is not None:  # it clears the bar
            return
        if self._shown:
            _FOOT.draw()
        elif (now := time.monotonic()) - self._told >= QUIET_SECONDS:
            self._told = now
            log.info("%s", self.short())

    def close(self) -> None:
        """Take the bar away; the line at the foot ends where it began."""
        super().close()
        if getattr(self, "_shown", False):
            _FOOT.leave(self)

    def whole(self, columns: int) -> str:
        """Return the bar, as wide as there is room."""
        return self.format_meter(**{**self.format_dict, "ncols": columns})

    def short(self) -> str:
        """Return how far the work is, in words."""
        told = self.format_dict
        done, rate = told["n"], told["rate"] or told["n"] / max(told["elapsed"], 1e-9)
        of = f"{done:.0f}/{self.total:.0f}" if self.total else f"{done:.0f}"
        left = f"{self.format_interval((self.total - done) / rate)} left" if self.total and rate else ""
        return ", ".join(part for part in (f"{self.desc} {of} {self.units}", str(self.postfix or ""), left) if part)


def bar(total: float | None = None, *, desc: str, unit: str, disable: bool = False) -> Bar:
    """Return a progress bar, as tqdm's: a context manager with `update` and `set_postfix_str`."""
    return Bar(total, desc, unit, disable=disable)


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns
