"""Load a YAML parameter file, apply --set overrides, and explain validation errors by field, rule and nearest name."""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from flows.config.paths import rooted
from models.core.allowlist import ALLOWED, FolderOrName, check_path, exists
from models.core.errors import ConfigError
from models.core.registry import Frozen, OneOf, Plugin, plugins_of

C = TypeVar("C", bound=Frozen)

# Fields of drafts before 0.1.0, by first and last part of their place: an error names what they are now.
_RENAMED = {
    "dpo.feedback": "feedback",
    "dpo.gate": "gate",
    "dpo.rounds": "iterations",
    "evaluation.curve": "evaluation.intermediate_checkpoints",
    "evaluation.versus": "evaluation.pairwise_judge",
    "evaluator.centring": "evaluator.center_rewards_coefficient",
    "evaluator.eft_seed": "evaluator.eft_examples",
    "evaluator.schedule": "evaluator.training",
    "gate.at_chance": "gate.on_failure",
    "gate.queries": "gate.relabel_queries",
    "gate.threshold": "gate.min_confidence",
    "evaluator.judgements": "evaluator.num_samples",
    "evaluator.read": "evaluator.scoring",
    "evaluator.start": "evaluator.init_from",
    "evaluator.strength": "evaluator.l2_scale",
    "labelling.against_length": "labelling.oracle.discourage_length_bias",
    "labelling.asks": "labelling.oracle.task",
    "labelling.batches": "labelling.rounds",
    "labelling.key_env": "labelling.oracle.endpoint.api_key_env",
    "labelling.panel": "labelling.oracle.annotator_pool",
    "labelling.read": "labelling.oracle.scoring",
    "labelling.structured": "labelling.oracle.structured_output",
    "labelling.workers": "labelling.concurrency",
    "prompts.draw": "prompts.sample_seed",
    "prompts.eft_seed": "prompts.eft_examples",
    "prompts.held_out_from": "prompts.held_out_offset",
    "prompts.seed": "prompts.demonstrations",
}


def load(cls: type[C], path: Path, overrides: list[str] | None = None) -> C:
    """Read a parameter file, apply `a.b=value` overrides (values are YAML) and validate the whole.

    Paths inside the file are relative to the file, those of overrides to the working directory. Raises ConfigError naming
    the field, the rule and, for a typo, the nearest field there is.
    """
    changes = {}
    for override in overrides or []:
        name, equals, value = override.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {override!r} must read field.subfield=value")
        changes[name] = yaml.safe_load(value)
    return load_with(cls, path, changes)


def load_with(cls: type[C], path: Path, changes: Mapping[str, Any]) -> C:
    """Read a parameter file as `load` does, and change fields by their names before it is validated."""
    settings = read(cls, path)
    for name, value in changes.items():
        set_field(settings, name, value)
    return validated(cls, settings, str(path))


class OrFile:
    """Annotation of a flow's parameter that may be given as a parameter file too, by its path: a deployment's are strings.

    However it is given, the files that it names are those that experiments may name.
    """

    def __get_pydantic_core_schema__(self, source: type[Frozen], handler: GetCoreSchemaHandler) -> CoreSchema:
        def read_file(given: object) -> object:
            return load(source, Path(given)) if isinstance(given, str) else given

        checked = core_schema.no_info_after_validator_function(check_files, handler(source))
        return core_schema.no_info_before_validator_function(
            read_file,
            checked,
            json_schema_input_schema=core_schema.union_schema([handler(source), core_schema.str_schema()]),
        )


def check_files(parameters: C) -> C:
    """Return parameters that name only files that experiments may name; raise ConfigError naming the first other one.

    Nothing is read but where NINEFOLD_FILES is set. Any text of another package's plugin may be a path.
    """
    if os.environ.get(ALLOWED):
        for name, path in _files(parameters, ""):
            check_path(name, path)
    return parameters


def _files(value: Frozen, place: str) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that a value's fields name, with the field."""
    foreign = isinstance(value, Plugin) and not type(value).__module__.startswith("models.")
    for name, field in type(value).model_fields.items():
        held = getattr(value, name)
        for each in _flat(held):
            if isinstance(each, Frozen):
                yield from _files(each, f"{place}{name}.")
            elif isinstance(each, Path):
                yield f"{place}{name}", each
            elif (
                isinstance(each, str)
                and name != "kind"
                and (foreign or FolderOrName in field.metadata)
                and exists(each)
            ):
                yield f"{place}{name}", Path(each)


def _flat(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def read(cls: type[Frozen], path: Path) -> dict[str, Any]:
    """Return what a parameter file holds, its paths made relative to the working directory.

    Raises ConfigError if it is no mapping, or where it may not be.
    """
    check_path("the experiment file", path)
    if not path.is_file():
        raise ConfigError(f"experiment file {path} does not exist: try deployments/experiments/quickstart.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file in UTF-8: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold a mapping of fields, got {type(settings).__name__}")
    found: dict[str, Any] = json.loads(
        json.dumps(settings, default=str)
    )  # YAML anchors share values; a change must not
    return rooted(found, cls, path.parent)


def validated(cls: type[C], settings: dict[str, Any], where: str) -> C:
    """Return the parameters that settings hold; the errors begin with `where` they come from."""
    try:
        return check_files(cls.model_validate(settings))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error, cls)}") from error


def set_field(settings: dict[str, Any], name: str, value: object) -> None:
    """Set `a.b` in nested settings; a new `kind` clears the fields of the old. Raises ConfigError if `a` has no fields."""
    *parents, last = name.split(".")
    place = settings
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{name!r}: {parent!r} has no fields of its own")
    if last == "kind" and place.get("kind") != value:
        place.clear()  # another plugin has other fields
    place[last] = value


def _explain(error: ValidationError, cls: type[Frozen]) -> str:
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        line = f"{'.'.join(place) or 'the file'}: {problem['msg'].removeprefix('Value error, ')}"
        if problem["type"] == "extra_forbidden" and (now := _RENAMED.get(f"{place[0]}.{place[-1]}")):
            line += f" (it is called {now!r} now)"
        elif problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place[-1], _fields_at(cls, place[:-1]), n=1, cutoff=0.4)
            line += f" (got {place[-1]!r}; did you mean {'.'.join([*place[:-1], near[0]])!r}?)" if near else ""
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
            line += f", got {problem['input']!r}"
        lines.append(line)
    return "; ".join(lines)


def _fields_at(cls: type[Frozen], place: list[str]) -> list[str]:
    """Return the names of the fields that may stand at a place of the file."""
    model: Any = cls
    for part in place:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            annotation = fields[part].annotation
            one_of = next((m for m in fields[part].metadata if isinstance(m, OneOf)), None)
            model = (one_of, annotation) if one_of else annotation
        elif isinstance(model, tuple):  # a union's place is followed by the kind
            kinds = {str(p.model_fields["kind"].default): p for p in plugins_of(model[1])}
            model = kinds.get(part, cls)
    return list(getattr(model, "model_fields", {}))
