"""Store and find reports: a folder per name in the home, shared through the store where there is one."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows.reporting.schema import RunReport
from models.core.cache import sha256_of
from models.core.files import whole
from models.metrics.intervals import Interval, json_number
from tasks.engine.locks import holding, stage_lock
from tasks.engine.settings import settings
from tasks.engine.store import store

_SHARED = "reports"  # of the store: its kind of artifact, and the place of its names


def report_folder(name: str) -> Path:
    """Return where the report of an experiment, a sweep or a study lies in this home."""
    return settings().home / "reports" / name


def fetched(name: str) -> Path:
    """Return the folder of a report, with what was written last: here, or by any machine that shares the store."""
    with _guarded(name):
        return _newest(name)


@contextmanager
def writing(name: str) -> Iterator[Path]:
    """Yield a report's folder with what was written last, to write into; other machines see it when the block ends well."""
    with _guarded(name):
        folder = _newest(name)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        if settings().shares_store:
            store().set_alias(_SHARED, name, store().write_folder(_SHARED, folder))


def read_report(name: str) -> RunReport | None:
    """Return the report of the last finished run of a name; None if there is none that this version can read."""
    return report_in(fetched(name))


def report_in(folder: Path) -> RunReport | None:
    """Return the report of a run that a folder holds; None if there is none, or of a study, or of another version."""
    path = folder / "report.json"
    try:
        return RunReport.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def reports_with(file: str) -> list[str]:
    """Return the names of the reports that hold a file, sorted."""
    if not settings().shares_store:
        return sorted(found.parent.name for found in report_folder("x").parent.glob(f"*/{file}"))
    shared = ((name, store().get_alias(_SHARED, name)) for name in store().list_aliases(_SHARED))
    return sorted(name for name, ref in shared if ref is not None and file in store().files(ref))


def finite(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report as JSON holds it: with None for NaN, and intervals as objects."""
    return {name: _finite(entry) for name, entry in report.items()}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return finite(value)
    if isinstance(value, Interval):
        return value.written()
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return json_number(value) if isinstance(value, float) else value


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with whole(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _guarded(name: str) -> Any:  # noqa: ANN401
    """Keep everybody else from a shared report: what is fetched replaces what is there, and the last to write is right."""
    return holding(stage_lock(f"report {name}")) if settings().shares_store else nullcontext()


def _newest(name: str) -> Path:
    """Return the folder of a report, made to hold the files of the shared one, if there is one, and no others."""
    folder = report_folder(name)
    ref = store().get_alias(_SHARED, name) if settings().shares_store else None
    if ref is None:
        return folder
    source, files = store().folder(ref), store().files(ref)
    for path in [path for path in folder.rglob("*") if path.is_file() and str(path.relative_to(folder)) not in files]:
        path.unlink()
    for file, entry in files.items():
        path = folder / file
        if not path.is_file() or sha256_of(path) != entry.sha256:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as draft:
                shutil.copyfile(source / file, draft)
    return folder
