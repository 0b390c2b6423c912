"""People answer in Label Studio: a real server of its own environment, driven through its API."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.core.cache import once
from models.core.rubric import Rubric
from models.labelling.human_queue import Queue
from models.labelling.label import AnswersPending, LabellingSession, label_responses
from models.labelling.label_studio import KEY, LabelStudio
from models.ledger.ledger import Ledger
from models.oracles.human import Human
from tests.conftest import response
from tests.flows.cli.test_main import ninefold as run_command
from tests.support.processes import free_port, serving

VERSION = "1.23.2"
PASSWORD = "correct horse battery"
PEOPLE = Human(annotators=2, micro_usd=1000)


def _install(folder: Path) -> None:
    """Make the server's environment: by uv, which takes an eighth of pip's time; it knows no index but its own settings'."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python, wanted = str(folder / "bin" / "python"), ["--quiet", f"label-studio=={VERSION}"]
    uv = _uv()
    if uv is None or subprocess.run([uv, "pip", "install", "--python", python, *wanted]).returncode != 0:
        subprocess.run([python, "-m", "pip", "install", *wanted], check=True)


def _uv() -> str | None:
    """Return uv's program: of its package, or the system's."""
    with suppress(ImportError, FileNotFoundError):
        from uv import find_uv_bin

        return str(find_uv_bin())
    return shutil.which("uv")


class Annotator:
    """Somebody who has signed in to the server, as a browser does."""

    def __init__(self, url: str, email: str, *, sign_up: bool = False) -> None:
        self.client = httpx.Client(base_url=url, follow_redirects=True, timeout=60)
        page = "/user/signup" if sign_up else "/user/login"
        self.client.get(page)
        form = {"email": email, "password": PASSWORD, "csrfmiddlewaretoken": self.client.cookies["csrftoken"]}
        found = self.client.post(page, data=form, headers={"Referer": url + page})
        assert found.url.path not in {"/user/login", "/user/signup"}, re.findall(r'class="error">([^<]*)', found.text)

    def call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"X-CSRFToken": self.client.cookies["csrftoken"], "Referer": str(self.client.base_url)}
        reply = self.client.request(method, path, headers=headers, **options)
        assert reply.status_code < 400, reply.text
        return reply.json()

    def judge(self, project: int, scores: dict[int, int | None]) -> None:
        for task in self.call("GET", "/api/tasks", params={"project": project})["tasks"]:
            score = scores.get(task["data"]["item"], 0)
            chosen = {
                "from_name": "score",
                "to_name": "response",
                "type": "choices",
                "value": {"choices": [str(score)]},
            }
            said = {"result": [], "was_cancelled": True} if score is None else {"result": [chosen]}
            self.call("POST", f"/api/tasks/{task['id']}/annotations/", json=said)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = once(f"label-studio-{VERSION}", _install)
    port, folder = free_port(), tmp_path_factory.mktemp("label-studio")
    command = [str(environment / "bin" / "python"), "-m", "label_studio.server", "start", "--no-browser"]
    command += ["--internal-host", "127.0.0.1", "--port", str(port)]
    own = {
        **{k: v for k, v in os.environ.items() if not k.startswith("LABEL_STUDIO")},
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": "ada@example.org",
        "LABEL_STUDIO_PASSWORD": PASSWORD,
        "COLLECT_ANALYTICS": "False",
    }
    with serving(command, port, log=folder / "log.txt", environment=own) as url:
        yield url


@pytest.fixture(scope="module")
def ada(server: str) -> Annotator:
    return Annotator(server, "ada@example.org")


@pytest.fixture(scope="module")
def access(ada: Annotator) -> str:
    return str(ada.call("POST", "/api/token/")["token"])


@pytest.fixture(scope="module")
def bob(server: str) -> Annotator:
    return Annotator(server, "bob@example.org", sign_up=True)


def posted(home: Path) -> Ledger:
    ledger = Ledger(f"sqlite:///{home / 'ledger.sqlite'}")
    with pytest.raises(AnswersPending):
        ask(ledger)
    return ledger


def ask(ledger: Ledger) -> Any:
    session = LabellingSession(ledger, PEOPLE, Rubric(), "a")
    return label_responses(
        [response(n, text=f'is <b>"{n}" & more') for n in range(4)], session, max_queries=4, max_micro_usd=10**6
    )


def ninefold(*arguments: str, home: Path, key: str, status: int = 0) -> str:
    said = run_command(*arguments, home=home, status=status, **{KEY: key})
    assert key not in said
    return said


def test_the_queue_goes_to_a_project_and_comes_back_judged(
    tmp_path: Path, server: str, ada: Annotator, bob: Annotator, access: str
) -> None:
    ledger = posted(tmp_path)
    said = ninefold("labels", "export", "--label-studio", server, home=tmp_path, key=access)
    project = int(re.findall(r"project (\d+)", said)[0])
    one, two, three, four = (item.id for item in sorted(Queue(ledger).items(), key=lambda item: item.response))
    ada.judge(project, {one: 4, two: 1, three: None, four: 5})
    fetch = ("labels", "import", "--label-studio", server, "--project", str(project))
    assert "4 new, 0 known already" in ninefold(*fetch, home=tmp_path, key=access)
    bob.judge(project, {one: 4, two: 3, three: None, four: 5})
    said = ninefold(*fetch, home=tmp_path, key=access)
    assert "4 new, 4 known already" in said
    assert "1 questions open, 1 judgements missing" in said, "a tie asks one more"
    assert Queue(ledger).items()[0].id == two
    Queue(ledger).withdraw()
    labels = ask(ledger)
    assert [entry.score for entry in labels if entry.status == "labelled"] == [4.0, 5.0]
    raws = {row["id"]: json.loads(row["raw"])["judgements"] for row in ledger.rows()}
    assert raws[three] == [["label-studio 1", None, ""], ["label-studio 2", None, ""]]


def test_by_files_and_with_a_legacy_token(
    tmp_path: Path, server: str, ada: Annotator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = posted(tmp_path)
    ninefold("labels", "export", str(tmp_path / "queue.json"), "--queue", home=tmp_path, key="unused")
    config = (tmp_path / "queue.xml").read_text()
    project = int(ada.call("POST", "/api/projects", json={"title": "by file", "label_config": config})["id"])
    tasks = json.loads((tmp_path / "queue.json").read_text())
    ada.call("POST", f"/api/projects/{project}/import", json=tasks)
    ada.judge(project, {item.id: 2 for item in Queue(ledger).items()})
    exported = ada.call("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"})
    (tmp_path / "export.json").write_text(json.dumps(exported))
    said = ninefold("labels", "import", str(tmp_path / "export.json"), home=tmp_path, key="unused")
    assert "4 new" in said

    ada.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": True})
    legacy = ada.call("GET", "/api/current-user/token")["token"]
    monkeypatch.setenv(KEY, legacy)
    assert len(LabelStudio(server).annotations(project)) == 4


def test_a_wrong_key_project_or_server_is_one_line(tmp_path: Path, server: str, access: str) -> None:
    fetch = ("labels", "import", "--label-studio", server, "--project", "99")
    wrong = access[:-4] + "AAAA"
    assert "refused POST /api/token/refresh/ with 401" in ninefold(*fetch, home=tmp_path, key=wrong, status=2)
    assert "refused GET /api/projects/99/export with 404" in ninefold(*fetch, home=tmp_path, key=access, status=2)
    nowhere = ("labels", "import", "--label-studio", f"http://127.0.0.1:{free_port()}", "--project", "1")
    assert "cannot be reached" in ninefold(*nowhere, home=tmp_path, key=access, status=2)
    said = ninefold("labels", "export", "--label-studio", server, home=tmp_path, key=access, status=2)
    assert "no question waits for people" in said
