"""The parameters of an experiment: one frozen model per concern, validated once, at the edge."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from models.acquisition.base import Acquisition
from models.acquisition.uniform import Uniform
from models.chat import Template
from models.cost import MicroUsd
from models.embedding import Embedding, PolicyEmbedding
from models.evaluators.base import Evaluator
from models.evaluators.generative import Generative
from models.generators.base import Generator
from models.generators.hf import Transformers
from models.oracles.base import Oracle
from models.plugins import Frozen, OneOf
from models.policies.dpo import DPO
from models.policies.language_model import Dtype
from models.policies.sft import SFT
from models.rubric import Rubric
from models.sources.base import PromptSource


class Seeds(Frozen):
    """`selection` decides what is bought; `training` decides sampling, SFT, the evaluator and DPO."""

    selection: NonNegativeInt = 0
    training: NonNegativeInt = 0


class PolicyConfig(Frozen):
    """The language model: packaged, a local directory, or a hub id `org/name@revision`."""

    model: str
    template: Template = "chat"
    dtype: Dtype = "bfloat16"
    max_prompt_tokens: PositiveInt = 512
    sft: SFT = SFT()


class Labelling(Frozen):
    """What to ask, whom, how often, and what it may cost. Both caps are hard."""

    acquisition: Annotated[Acquisition, OneOf("models.acquisition")] = Uniform()
    oracle: Annotated[Oracle, OneOf("models.oracles")]
    rubric: Rubric = Rubric()
    queries: PositiveInt = Field(description="expert queries in all, over rounds and batches")
    max_micro_usd: MicroUsd = Field(description="micro-dollars in all, over rounds and batches")
    batches: PositiveInt = Field(1, description="acquisition turns per round; the evaluator is refitted in between")
    workers: PositiveInt = Field(4, description="concurrent queries; does not change the result")
    shuffle_labels: bool = Field(False, description="the control arm: permute the labels before the evaluator learns")


class Evaluation(Frozen):
    """Held-out evaluation. Its queries are not the budget's: they measure, they do not teach."""

    samples: int = Field(2, ge=2, description="answers per held-out prompt and policy; pairs need two")
    max_micro_usd: MicroUsd = Field(description="micro-dollars that the evaluation's queries may cost")


class Experiment(Frozen):
    """One arm: the paper's algorithm with every choice made."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    seeds: Seeds = Seeds()
    prompts: Annotated[PromptSource, OneOf("models.sources")]
    policy: PolicyConfig
    generation: Annotated[Generator, OneOf("models.generators")] = Transformers()
    embedding: Annotated[Embedding, OneOf("models.embedding")] = PolicyEmbedding()
    labelling: Labelling
    evaluator: Annotated[Evaluator, OneOf("models.evaluators")] = Generative()
    dpo: DPO = DPO()
    evaluation: Evaluation

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        turns = self.dpo.rounds * self.labelling.batches
        if self.labelling.queries < turns:
            raise ValueError(
                f"labelling.queries={self.labelling.queries} does not reach for {turns} turns "
                f"(dpo.rounds × labelling.batches): raise it to at least {turns}"
            )
        if self.generation.samples < 2:
            raise ValueError("generation.samples must be at least 2: a preference needs two responses to a prompt")
        if self.labelling.acquisition.needs.scores and turns == 1:
            raise ValueError(
                f"acquisition {self.labelling.acquisition.label()!r} ranks by an evaluator, and with one "
                "turn there is none when it picks: set labelling.batches to 2 or more"
            )
        return self


def load_experiment(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment file, apply `a.b=value` overrides (values are YAML) and validate the whole.

    Relative paths inside the file are relative to the working directory. Raises ValueError naming the field, the rule and,
    for a typo, the nearest field there is.
    """
    if not path.is_file():
        raise ValueError(f"experiment file {path} does not exist: try deployments/experiments/quickstart.yaml")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file in UTF-8: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of fields, got {type(settings).__name__}")
    settings = json.loads(json.dumps(settings, default=str))  # YAML anchors share values; an override must not
    for override in overrides or []:
        _override(settings, override)
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error


def _override(settings: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {override!r} must read field.subfield=value")
    *parents, last = name.split(".")
    place = settings
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ValueError(f"--set {override!r}: {parent!r} has no fields of its own")
    if last == "kind" and place.get("kind") != value:
        place.clear()  # another plugin has other fields
    place[last] = yaml.safe_load(value)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        line = f"{'.'.join(place) or 'experiment'}: {problem['msg'].removeprefix('Value error, ')}"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place[-1], _fields_at(place[:-1]), n=1, cutoff=0.4)
            line += f" (got {place[-1]!r}; did you mean {'.'.join([*place[:-1], near[0]])!r}?)" if near else ""
        elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
            line += f", got {problem['input']!r}"
        lines.append(line)
    return "; ".join(lines)


def _fields_at(place: list[str]) -> list[str]:
    """Return the names of the fields that may stand at a place of the experiment."""
    model: Any = Experiment
    for part in place:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            annotation = fields[part].annotation
            one_of = next((m for m in fields[part].metadata if isinstance(m, OneOf)), None)
            model = (one_of, annotation) if one_of else annotation
        elif isinstance(model, tuple):  # a union's place is followed by the kind
            kinds = {str(p.model_fields["kind"].default): p for p in model[0].plugins(model[1])}
            model = kinds.get(part, Experiment)
    return list(getattr(model, "model_fields", {}))
