"""A terminal of a hundred columns: what a command leaves on it, after all that was drawn and taken away again."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import ROOT

COLUMNS = 100
_CODE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


def screen(written: str, columns: int = COLUMNS) -> list[str]:
    """Return the lines that stand when all is written; raise ValueError for a code that this terminal does not know."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        character = written[at]
        at += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row += 1
        elif character == "\x1b":
            code = _CODE.match(written, at - 1)
            if code is None:
                raise ValueError(f"an unknown code: {written[at - 1 : at + 9]!r}")
            at = code.end()
            count = int(code[1]) if code[1].isdigit() else 1
            if code[2] == "K":
                lines[row] = lines[row][:column] if code[1] in ("", "0") else ""
            elif code[2] in "AB":
                row = max(row + (count if code[2] == "B" else -count), 0)
            elif code[2] not in "mhl":  # colours, and whether the cursor is seen
                raise ValueError(f"an unknown code: {code[0]!r}")
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


def on_terminal(*arguments: str, home: Path, environment: Mapping[str, str]) -> str:
    """Run a command of ours on a terminal, and return all it has written there; fail if it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        cwd=ROOT,
        env={**own, "NINEFOLD_HOME": str(home), "TERM": "xterm"},
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    written = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # the last who had it open has closed it
            break
        if not read:
            break
        written += read
    os.close(ours)
    said = written.decode()
    assert process.wait(60) == 0, said[-4000:]
    return said
