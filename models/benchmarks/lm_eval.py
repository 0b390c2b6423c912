"""lm-evaluation-harness on a policy: MMLU, BBH, IFEval, or any of its tasks."""

import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.core.cache import sha256_of
from models.core.data import QuestionResult
from models.core.errors import ConfigError
from models.core.registry import Frozen, digest_of
from models.policies.language_model import LanguageModel

PACKAGE = "lm-eval"
_NAMED = re.compile(r"^(?P<name>[\w.-]+)(?::(?P<shots>\d+))?$")

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class Task(Frozen):
    """A task or a group of tasks, the examples shown before each question, and how many questions to ask at most.

    `shots` None and `limit` 0 leave it as the task has it. `folder` holds task files beside the package's own.
    """

    name: str
    shots: int | None = None
    limit: int = 0
    folder: Path | None = None

    @classmethod
    def parse(cls, text: str, *, limit: int, folder: Path | None) -> "Task":
        """Read `name` or `name:shots`; raise ConfigError if it is neither."""
        found = _NAMED.match(text)
        if found is None:
            raise ConfigError(f"benchmark {text!r} is no task: write its name, or name:shots such as mmlu:5")
        shots = None if found["shots"] is None else int(found["shots"])
        return cls(name=found["name"], shots=shots, limit=limit, folder=folder)

    def kind_name(self) -> str:
        """Return the name, and the shots if they are given."""
        return self.name if self.shots is None else f"{self.name}:{self.shots}"

    def manager(self) -> "TaskManager":
        """Return an index that has this task, if there is one: the folder's alone where that is enough."""
        # a group, or a tag, may be of tasks that the folder has not
        if self.folder is not None and self.name in (alone := _manager(self.folder, package=False)).all_subtasks:
            return alone
        return _manager(self.folder, package=True)

    def identity(self) -> str:
        """Return a digest of what an answer depends on, the files of the folder and the package's version included."""
        files = [] if self.folder is None else sorted(file for file in self.folder.rglob("*") if file.is_file())
        return digest_of([self.name, self.shots, self.limit, version(PACKAGE), *[sha256_of(file) for file in files]])


def check(tasks: Sequence[Task]) -> None:
    """Raise ConfigError if the package or one of the tasks is not there, before anything runs."""
    try:
        version(PACKAGE)
    except PackageNotFoundError as error:
        raise ConfigError("benchmarks need lm-evaluation-harness: pip install 'ninefold[benchmarks]'") from error
    for task in tasks:
        if task.folder is not None and not task.folder.is_dir():
            raise ConfigError(f"{task.folder} is no folder of task files: check --tasks-from")
        if not task.manager().match_tasks([task.name]):
            raise ConfigError(
                f"lm-evaluation-harness has no task {task.name!r}: `lm-eval ls tasks` lists them, --tasks-from adds yours"
            )


def grade(policy: LanguageModel, task: Task, *, batch_size: int) -> list[QuestionResult]:
    """Return what the policy gets for each question, by the task's first filter and metric.

    It is asked with its chat template, if it has one. The harness's own seeds decide which examples are shown, the same for
    every policy.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    found: Any = simple_evaluate(
        model=HFLM(pretrained=policy.model, tokenizer=policy.tokenizer, batch_size=batch_size),
        tasks=[task.name],
        num_fewshot=task.shots,
        limit=task.limit or None,
        task_manager=task.manager(),
        apply_chat_template=policy.template == "chat",
        bootstrap_iters=0,  # the interval is ours, paired over questions
    )
    rows = []
    for name, samples in sorted(found["samples"].items()):
        first = samples[0]["filter"]  # one that reads the answer in two ways grades each question twice
        for sample in (one for one in samples if one["filter"] == first):
            metric = sample["metrics"][0]
            score = sample[metric]
            rows.append(QuestionResult(name, int(sample["doc_id"]), metric, float(score)))
    bad = [row for row in rows if not math.isfinite(row.score)]
    if not rows or bad:
        raise ConfigError(f"benchmark {task.kind_name()} gave {len(rows)} grades, {len(bad)} of them no number")
    return rows


@cache
def _manager(folder: Path | None, *, package: bool) -> "TaskManager":
    """Return the index of the folder's tasks, and the `package`'s: thousands of files are read for it."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder), include_defaults=package)
