"""Label Studio projects for the annotation queue, by file or by API."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

import httpx

from models.core.errors import ConfigError
from models.labelling.human_queue import SCALES, Item

KEY = "LABEL_STUDIO_API_KEY"
CANNOT_JUDGE = "?"
_SECONDS = 60.0


class Line(NamedTuple):
    """A row of a file and where it stands: the line that it begins on, or the number of its task."""

    number: int
    row: Mapping[str, Any]
    what: str = "line"


def tasks_of(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return the queue as tasks for a Label Studio project that has `config_of`."""
    return [{"data": {"item": item.id, "prompt": item.prompt, **texts(item)}} for item in items]


def config_of(items: Sequence[Item]) -> str:
    """Return the labelling interface; raise ConfigError if the queue holds both single responses and pairs, or nothing."""
    if len(kinds := {(item.query_type, item.guide) for item in items}) != 1:
        raise ConfigError(
            f"a Label Studio project shows one kind of question, and {len(kinds)} are open: settle the others first"
        )
    ((query_type, guide),) = kinds
    shown = {"prompt": "Instruction"} | (
        {"response": "Response A", "response_b": "Response B"} if query_type == "pairwise" else {"response": "Response"}
    )
    lines = "".join(f"<Header size='6' value={quoteattr(line)}/>" for line in guide.splitlines())
    fields = "".join(f'<Header value="{title}"/><Text name="{name}" value="${name}"/>' for name, title in shown.items())
    scale = ("A", "B", "neither") if query_type == "pairwise" else SCALES["pointwise"]
    choices = "".join(f'<Choice value="{value}"/>' for value in scale)
    return (
        f'<View>{lines}{fields}<Choices name="score" toName="response" choice="single-radio" showInLine="true" '
        f'required="true">{choices}</Choices><TextArea name="note" toName="response" placeholder="note"/></View>'
    )


def texts(item: Item) -> dict[str, str]:
    """Return the texts to judge, by field."""
    return dict(zip(("response", "response_b"), item.texts, strict=False))


def annotations(tasks: object, source: object) -> list[Line]:
    """Return the annotations of a JSON export, each with the number of its task; raise ConfigError if it is none."""
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "annotations" in task for task in tasks):
        raise ConfigError(
            f"{source} is not a Label Studio export in the JSON format: a list of tasks with their annotations"
        )
    return [
        Line(number, {**task["data"], **_annotation(annotation)}, "task")
        for number, task in enumerate(tasks, start=1)
        for annotation in task["annotations"]
    ]


def _annotation(annotation: Mapping[str, Any]) -> dict[str, Any]:
    said = {result["from_name"]: result["value"] for result in annotation["result"]}
    who = annotation["completed_by"]
    if ("score" in said and "choices" not in said["score"]) or (said.keys() - {"note"} and "score" not in said):
        named = ", ".join(sorted(said))
        raise ConfigError(
            f"an annotation by {who} has no choice named score (it has {named}): use the interface of the queue"
        )
    chosen = said.get("score", {}).get("choices", [""])[0]
    return {
        "annotator": f"label-studio {who['email'] if isinstance(who, dict) else who}",
        "score": CANNOT_JUDGE if annotation.get("was_cancelled") else chosen,
        "note": " ".join(said.get("note", {}).get("text", [])),
    }


class LabelStudio:
    """A server; the key is read from the environment variable LABEL_STUDIO_API_KEY and goes nowhere else.

    A personal access token (a JWT) is exchanged for one that lasts minutes; any other key is a legacy token.
    """

    def __init__(self, url: str) -> None:
        if not (key := os.environ.get(KEY)):
            raise ConfigError(f"environment variable {KEY} is not set: copy the token of your account page into it")
        self.url = url.rstrip("/")
        if key.count(".") == 2:
            key = "Bearer " + str(self._call("POST", "/api/token/refresh/", json={"refresh": key})["access"])
        else:
            key = f"Token {key}"
        self._headers = {"Authorization": key}

    def new_project(self, title: str, items: Sequence[Item]) -> int:
        """Make a project that holds the queue, and return its number."""
        asked = {
            "title": title,
            "label_config": config_of(items),
            "maximum_annotations": max(item.wanted for item in items),
        }
        number = int(self._call("POST", "/api/projects", json=asked)["id"])
        self._call("POST", f"/api/projects/{number}/import", json=tasks_of(items))
        return number

    def annotations(self, project: int) -> list[Line]:
        """Return what the annotators of a project have said."""
        exported = self._call("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"})
        return annotations(exported, f"project {project} at {self.url}")

    def _call(self, method: str, path: str, **options: Any) -> Any:  # noqa: ANN401
        headers = getattr(self, "_headers", {})
        try:
            reply = httpx.request(method, self.url + path, headers=headers, timeout=_SECONDS, **options)
        except httpx.HTTPError as error:
            raise ConfigError(f"Label Studio at {self.url} cannot be reached: {error}") from None
        if reply.status_code >= 400:
            raise ConfigError(
                f"Label Studio at {self.url} refused {method} {path} with {reply.status_code}: {_reason(reply)}; check "
                f"{KEY} and the project's number"
            )
        return reply.json()


def _reason(reply: httpx.Response) -> str:
    try:
        return str(reply.json().get("detail", "")).replace(os.environ[KEY], f"${KEY}")
    except ValueError:
        return "no reason given"
