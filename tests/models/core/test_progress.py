"""Progress: one line at the foot of a terminal that leaves nothing behind, and few lines in a log."""

import io
import logging
import sys
from collections.abc import Callable
from threading import Thread

import pytest

from models.core import progress
from tests.support.terminal import screen

WIDE = 90


class Terminal(io.StringIO):
    """What is written to stdout and stderr, in order, as a terminal sees it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return screen(self.getvalue(), WIDE)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Return what puts a terminal in front of this process; within the test, for pytest captures anew before it."""

    def open_terminal() -> Terminal:
        both = Terminal()
        for name, value in {"TERM": "xterm", "COLUMNS": str(WIDE)}.items():
            monkeypatch.setenv(name, value)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, both)
        progress.keep_foot()
        return both

    return open_terminal


def test_a_bar_is_one_line_and_ends_where_it_began(opened: Callable[[], Terminal]) -> None:
    terminal = opened()
    with progress.heading("▶ generate"):
        with progress.bar(total=4, desc="generating", unit="response") as bar:
            for done in range(1, 5):
                bar.update()
                bar.set_postfix_str(f"{done} tokens/s")
                assert len(terminal.lines) == 1
                assert terminal.lines[0].startswith("▶ generate  generating")
                assert f"{done}/4 responses" in terminal.lines[0]
                assert f"{done} tokens/s" in terminal.lines[0]
        assert terminal.lines == ["▶ generate"]
    assert terminal.lines == [""]


def test_what_is_printed_meanwhile_stands_above_the_bar(opened: Callable[[], Terminal]) -> None:
    terminal = opened()
    with progress.bar(total=2, desc="labelling", unit="query") as bar:
        print("one")  # noqa: T201
        logging.StreamHandler(sys.stderr).emit(logging.LogRecord("x", logging.WARNING, "", 0, "two", None, None))
        bar.update()
        sys.stderr.writelines(["three\n", "four\n"])
        *above, foot = terminal.lines
        assert above == ["one", "two", "three", "four"]
        assert foot.startswith("labelling")
    assert terminal.lines == ["one", "two", "three", "four", ""]


def test_a_line_that_has_not_ended_is_not_written_over(opened: Callable[[], Terminal]) -> None:
    terminal = opened()
    with progress.bar(total=2, desc="labelling", unit="query") as bar:
        print("go on? ", end="")  # noqa: T201
        bar.update()
        bar.refresh()
        assert terminal.lines == ["go on?"]
        print("yes")  # noqa: T201
        assert terminal.lines[0] == "go on? yes"
        assert terminal.lines[1].startswith("labelling")
    assert terminal.lines == ["go on? yes", ""]


def test_bars_within_bars_are_one_line_no_wider_than_the_terminal(opened: Callable[[], Terminal]) -> None:
    terminal = opened()
    with (
        progress.heading("arm 1 of 3: a-name-that-is-rather-long.queries-48.beta-0.1.learning-rate-2e-4.s0"),
        progress.bar(total=3, desc="scoring", unit="shard") as outer,
    ):
        for _ in range(3):
            with progress.bar(total=2, desc="judging", unit="text") as inner:
                inner.update(2)
                inner.refresh()
                assert len(terminal.lines) == 1
                assert "2/2 texts" in terminal.lines[0]
                assert len(terminal.lines[0]) < WIDE
            outer.update()
            outer.refresh()
            assert len(terminal.lines) == 1
    assert terminal.lines == [""]


def test_work_that_fails_takes_its_bar_away(opened: Callable[[], Terminal]) -> None:
    terminal = opened()

    def fail() -> None:
        with progress.heading("▶ align"), progress.bar(total=9, desc="training", unit="step") as bar:
            bar.update()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert terminal.lines == [""]


def test_lines_of_other_threads_are_whole(opened: Callable[[], Terminal]) -> None:
    terminal = opened()

    def talk(name: str) -> None:
        for number in range(50):
            sys.stdout.write(f"{name} says {number}\n")

    threads = [Thread(target=talk, args=(name,)) for name in ("ada", "bob")]
    with progress.bar(total=2000, desc="scoring", unit="text") as bar:
        for thread in threads:
            thread.start()
        for _ in range(2000):
            bar.update()
            bar.refresh()
        for thread in threads:
            thread.join()
    *said, end = terminal.lines
    assert end == ""
    assert sorted(said) == sorted(f"{name} says {number}" for name in ("ada", "bob") for number in range(50))


def test_the_foot_is_kept_once(opened: Callable[[], Terminal]) -> None:
    opened()
    kept = sys.stdout
    progress.keep_foot()
    assert sys.stdout is kept
    assert sys.stdout.isatty()


def test_a_terminal_without_control_codes_is_told_lines_only(
    opened: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = opened()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with (
        caplog.at_level(logging.INFO),
        progress.heading("▶ generate"),
        progress.bar(total=2, desc="generating", unit="response") as bar,
    ):
        bar.update()
    assert terminal.getvalue() == ""
    assert any(line.startswith("generating 1/2 responses") for line in caplog.messages)


def test_a_log_is_told_of_long_work_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress.bar(total=100, desc="labelling", unit="query") as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.update()
            bar.set_postfix_str("2 tokens/s")
    told = [line.split(", ")[:2] for line in caplog.messages]
    assert told == [
        ["labelling 30/100 queries", "2 tokens/s"],
        ["labelling 60/100 queries", "2 tokens/s"],
        ["labelling 90/100 queries", "2 tokens/s"],
    ]
    assert capsys.readouterr() == ("", "")


def test_a_log_is_not_told_of_short_work(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        caplog.at_level(logging.DEBUG),
        progress.heading("▶ pair"),
        progress.bar(total=5, desc="x", unit="text") as bar,
    ):
        bar.update(5)
    assert caplog.messages == []
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_is_off_counts_nothing_and_shows_nothing(opened: Callable[[], Terminal]) -> None:
    terminal = opened()
    with progress.bar(total=5, desc="labelling", unit="query", disable=True) as bar:
        bar.update()
        bar.set_postfix_str("x")
    assert terminal.getvalue() == ""
