"""The command line as users meet it: fast help, one-line errors, a ledger that moves between machines."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from models.ledger.ledger import Ledger
from models.ledger.tables import Question
from tests.support.processes import finished, without_prefect

ROOT = Path(__file__).parents[3]


def ninefold(*arguments: str, home: Path, status: int = 0, **environment: str) -> str:
    own = {**without_prefect(), "NINEFOLD_HOME": str(home), "COLUMNS": "160", **environment}
    done = finished("flows.cli.main", *arguments, environment=own, timeout=120)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_help_answers_in_under_a_second() -> None:
    """In processor time, so that a busy machine does not decide."""
    command = [sys.executable, "-m", "flows.cli.main", "--help"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.0


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["plan"],
        ["report"],
        ["doctor"],
        ["up"],
        ["labels", "list"],
        ["labels", "export"],
        ["labels", "import"],
        ["labels", "queue"],
        ["labels", "drift"],
        ["labels", "injection"],
        ["bench", "label-efficiency"],
        ["bench", "synthetic"],
    ],
)
def test_every_command_has_help_with_an_example(tmp_path: Path, command: list[str]) -> None:
    assert f"Example: ninefold {' '.join(command)}" in ninefold(*command, "--help", home=tmp_path)


def test_a_typo_is_one_line_that_names_the_nearest_field(tmp_path: Path, tiny_file: Path) -> None:
    shown = ninefold("plan", str(tiny_file), "--set", "labelling.querys=3", home=tmp_path / "h", status=2)
    assert "did you mean 'labelling.queries'?" in shown
    assert len(shown.strip().splitlines()) == 1
    assert not (tmp_path / "h").exists()


def test_an_unknown_option_or_command_is_one_line(tmp_path: Path) -> None:
    assert "No such command" in ninefold("trian", home=tmp_path, status=2)
    assert "No such option" in ninefold("plan", "x.yaml", "--sett", "a=b", home=tmp_path, status=2)


def test_the_plan_spends_and_writes_nothing(tmp_path: Path, tiny_file: Path) -> None:
    shown = ninefold("plan", str(tiny_file), home=tmp_path / "h")
    assert "at most 10 queries and $0.10" in shown
    assert "in all" in shown
    assert not (tmp_path / "h").exists()


def test_labels_move_between_ledgers(tmp_path: Path) -> None:
    first = Ledger(f"sqlite:///{tmp_path / 'a' / 'ledger.sqlite'}")
    bought = {"status": "labelled", "raw": "é", "tokens": 1, "micro_usd": 5}
    first.import_labels(
        [
            (Question("judge", "c", f"p{number}", 'r "quoted", with\nlines'), bought | {"score": number / 3})
            for number in range(3)
        ]
    )
    for name in ("labels.csv", "labels.jsonl"):
        exported = tmp_path / name
        assert "3 labels written" in ninefold("labels", "export", str(exported), home=tmp_path / "a")
        home = tmp_path / exported.suffix
        assert "3 labels taken over, 0 were known" in ninefold("labels", "import", str(exported), home=home)
        assert "0 labels taken over, 3 were known" in ninefold("labels", "import", str(exported), home=home)
        copied = [
            (r["prompt"], r["response"], r["score"], r["raw"])
            for r in Ledger(f"sqlite:///{home / 'ledger.sqlite'}").rows()
        ]
        assert copied == [(r["prompt"], r["response"], r["score"], r["raw"]) for r in first.rows()]
    assert "3 queries, $0.000015" in ninefold("labels", "list", home=tmp_path / "a")


def test_a_wrong_status_file_or_report_is_named(tmp_path: Path) -> None:
    assert "--status must be one of reserved, labelled" in ninefold(
        "labels", "list", "--status", "paid", home=tmp_path, status=2
    )
    assert "must end in .csv or .jsonl" in ninefold("labels", "export", "x.txt", home=tmp_path, status=2)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert "line 2: oracle: Field required" in ninefold(
        "labels", "import", str(tmp_path / "bad.csv"), home=tmp_path, status=2
    )
    assert "no report 'nothing'" in ninefold("report", "nothing", home=tmp_path, status=2)


def test_doctor_finds_a_known_bad_combination() -> None:
    from flows.runtime import doctor

    good = {f.what.split()[0]: f for f in doctor._packages()}
    assert good["fastapi"].ok
    original = doctor.version
    try:
        doctor.version = lambda name: "0.151.0" if name == "fastapi" else original(name)  # type: ignore[assignment]
        bad = {f.what.split()[0]: f for f in doctor._packages()}["fastapi"]
    finally:
        doctor.version = original
    assert not bad.ok
    assert "Prefect's server dies at import" in bad.remedy


def test_doctor_reports_a_taken_port(tmp_path: Path) -> None:
    import socket

    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 5000))
        server.listen()
        assert "BAD port 5000 for mlflow is free — ninefold up --mlflow-port ANOTHER" in ninefold(
            "doctor", home=tmp_path, status=1
        )


def test_ctrl_c_is_told_as_such_when_an_error_is_raised_over_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Prefect does when the signal arrives while a task run is being set up."""
    from flows.cli import main as cli

    def interrupted(**_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("Task run is not set")

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130
    assert "every label paid for is kept" in capsys.readouterr().err


def test_the_synthetic_study_measures_regret_by_regime(tmp_path: Path) -> None:
    shown = ninefold("bench", "synthetic", "--seeds", "2", home=tmp_path)
    report = json.loads((tmp_path / "reports" / "synthetic" / "report.json").read_text())
    assert {row["regime"] for row in report["rows"]} == {"on_policy", "off_policy", "imbalanced"}
    assert all(row["curve"][-1] < row["curve"][0] for row in report["rows"] if row["strategy"] == "random")
    assert "simulated labels, 2 worlds per regime" in shown
    said = ninefold("report", "synthetic", home=tmp_path, status=2)
    assert f"report 'synthetic' is a study's, or of another version: {tmp_path / 'reports' / 'synthetic'}" in said
