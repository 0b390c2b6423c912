"""Read text files of users (lines, JSON lines) strictly: errors name file and line."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.core.errors import ConfigError

TEXT, ROWS = (".txt",), (".jsonl", ".ndjson")
_BOM = "\ufeff"
_HEADERS = {
    "prompt",
    "prompts",
    "instruction",
    "instructions",
    "question",
    "questions",
    "query",
    "text",
    "input",
    "inputs",
}
_FIELD = re.compile(r"[\w .-]{1,40}")
# what holds a conversation in the data sets that people have
_CONVERSATIONS = ("messages", "conversations", "conversation", "system", "system_prompt", "history", "turns")
_LATER = "conversations and system prompts are not read yet: write what the model is given as one text in 'prompt'"


def check_suffix(path: Path) -> None:
    """Raise ConfigError if a file's name does not say that it holds lines of text, or of JSON."""
    if path.suffix.lower() not in (*TEXT, *ROWS):
        raise ConfigError(
            f"{path} ends in {path.suffix or 'no suffix'!r}, and what is read is .txt (a prompt a line) and .jsonl or "
            '.ndjson (a JSON object a line, {"prompt": "…"}): convert it, or name it by what it holds'
        )


def lines_of(path: Path) -> list[tuple[int, str]]:
    r"""Return the lines of a file that are not empty, by number. A line ends at \n or \r\n and nowhere else.

    Raises ConfigError if it is not UTF-8 or holds what no text does.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 (byte {error.start}): convert it, for example with iconv -t UTF-8"
        ) from error
    # files with the mark that come one after the other have it in the middle
    lines = [line.removesuffix("\r").removeprefix(_BOM) for line in text.split("\n")]
    for number, line in enumerate(lines, start=1):
        if "\0" in line:
            raise ConfigError(
                f"{path}, line {number} holds a NUL: it is no text, or UTF-16 (convert it with iconv -t UTF-8)"
            )
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def prompts_of(path: Path) -> list[tuple[int, dict[str, Any]]]:
    r"""Return the lines of a text file as rows of `prompt`; raise ConfigError if it is JSON or a table by another name."""
    lines = lines_of(path)
    for number, line in lines:
        if "\r" in line:
            raise ConfigError(f"{path}, line {number} holds a carriage return within: end lines with \\n or \\r\\n")
    if lines and (_are_rows([line for _, line in lines]) or _is_json(lines)):
        raise ConfigError(
            f"{path} holds JSON, and .txt is read as a prompt a line: write an object a line and name it .jsonl"
        )
    if lines and _is_header(lines[0][1]):
        raise ConfigError(
            f"{path}, line {lines[0][0]} is the header of a table ({lines[0][1].strip()[:60]!r}), and .txt is read as a "
            'prompt a line: write {"prompt": "…"} lines and name it .jsonl. A prompt that looks so may stand there too'
        )
    return [(number, {"prompt": line}) for number, line in lines]


def rows_of(path: Path, known: Sequence[str]) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a file of JSON lines, by number; raise ConfigError naming the line that is none.

    So are refused: a key twice, a key that is none of the known ones where the first of them is there, a conversation.
    """
    records = []
    for number, line in lines_of(path):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line, object_pairs_hook=_once)
        except _TwiceError as error:
            raise ConfigError(f"{where} has the key {str(error)!r} twice: keep one") from error
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise ConfigError(f"{where} is not JSON: {said}; write an object a line") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{where} is not a JSON object")
        if found := [name for name in _CONVERSATIONS if name in record]:
            raise ConfigError(f"{where} has {found[0]!r}: {_LATER}")
        if isinstance(record.get(known[0]), list | dict):
            raise ConfigError(f"{where}: {known[0]!r} holds a {type(record[known[0]]).__name__}: {_LATER}")
        if known[0] in record and (unknown := sorted(record.keys() - set(known))):
            raise ConfigError(f"{where} has {unknown}, and what is read is {', '.join(known)}: remove it, or rename it")
        records.append((number, record))
    return records


def check_text(text: str, where: str) -> str:
    """Return a text; raise ConfigError if it cannot be written down: half a character, or a NUL."""
    if "\0" in text:
        raise ConfigError(f"{where} holds a NUL (\\u0000): remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{where} holds half a character ({text[error.start]!a}): it was cut within a pair"
        ) from error
    return text


class _TwiceError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(name)
        found[name] = value
    return found


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _are_rows(lines: Sequence[str]) -> bool:
    """Whether every line is an object, or some line is one that has a prompt."""
    objects = [found for line in lines if isinstance(found := _json(line.strip().rstrip(",")), dict)]
    return len(objects) == len(lines) or any(found.keys() & {"prompt", "messages"} for found in objects)


def _is_json(lines: Sequence[tuple[int, str]]) -> bool:
    """Whether all lines together are one array or object, as exports write them."""
    begin, end = lines[0][1].strip()[0], lines[-1][1].strip()[-1]
    return begin + end in ("[]", "{}") and isinstance(_json("\n".join(line for _, line in lines)), list | dict)


def _is_header(line: str) -> bool:
    """Whether a line is the header of a table: names between commas, semicolons or tabs, one of them of a prompt."""
    if line.strip().strip("\"'").lower() in ("prompt", "prompts"):
        return True
    for delimiter in ",;\t|":
        fields = [field.strip().strip("\"'") for field in line.split(delimiter)]
        if len(fields) > 1 and all(_FIELD.fullmatch(field) for field in fields):
            return any(field.lower() in _HEADERS for field in fields)
    return False
