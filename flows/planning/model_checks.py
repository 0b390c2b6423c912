"""Check before anything is bought that the models can do what an experiment asks: architecture, template, context."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flows.config.experiment import Experiment
from models.core.data import Demonstration
from models.core.errors import ConfigError
from models.embeddings.policy import PolicyEmbedding
from models.evaluators.generative import SAMPLED_TOKENS, Generative
from models.evaluators.judge import Judge
from models.evaluators.reward_head import RewardHead
from models.oracles.base import Oracle, approximate_tokens
from models.oracles.reward_model import RewardModel
from models.policies.model_files import ModelFiles, can_classify, files_at_hand
from models.policies.resolve import tokenizer_at_hand
from models.training.config import TrainingConfig

# Adapters on these families' layers change nothing: their kernels read the weights themselves (peft refuses them).
_WITHOUT_ADAPTERS = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
_LONGEST = 5  # demonstrations, by characters, whose tokens are counted
_LINE = 11  # characters of a plan's first column


class _Lengths(NamedTuple):
    """The most tokens of a prompt with its template, of a response, and of what the template writes around and after."""

    prompt: int
    response: int
    around: int
    after: int

    @property
    def whole(self) -> int:
        """Return the most tokens of a prompt and its response."""
        return self.prompt + self.response + self.after


def check_models(config: Experiment, views: Sequence[str], demonstrations: Sequence[Demonstration]) -> list[str]:
    """Raise ConfigError if a model at hand cannot do its part; return the plan's lines on what was not checked or is cut.

    What the oracles' own models can do, their `check` says.
    """
    notes, files = [], files_at_hand(config.policy.model)
    count = tokenizer_at_hand(config.policy.model) or approximate_tokens
    lengths = _Lengths(config.policy.max_prompt_tokens, config.generation.max_new_tokens, 0, 1)
    if files is None:
        notes.append(
            f"{'model':{_LINE}}{config.policy.model} is not here yet: its context and template were not checked"
        )
    else:
        lengths = _check_policy(config, files, count)
        if files.context is not None:
            _check_lengths(config, files.context, lengths, views, count)
            _check_demonstrations(config, files.context, lengths, demonstrations, count)
    for field, oracle in config.oracles.items():
        notes += _reward_model_notes(field, oracle, lengths)
    if views and not config.embedding.needs_policy:
        longest, read = max(_in_view(config, view, lengths, count) for view in views), config.embedding.reads_at_most()
        if read is not None and longest > read:
            notes.append(
                f"{'embedding':{_LINE}}reads the first {read} tokens of a text, which may have up to {longest}"
            )
    return list(dict.fromkeys(notes))


def _check_policy(config: Experiment, files: ModelFiles, count: Callable[[str], int]) -> _Lengths:
    files.check_writes("policy.model")
    evaluator, trained = config.evaluator, config.feedback != "none"
    if files.model_type in _WITHOUT_ADAPTERS:
        schedules = {"policy.sft": config.policy.sft, **({"dpo": config.dpo} if trained else {})}
        if trained and isinstance(own := getattr(evaluator, "training", None), TrainingConfig):
            schedules["evaluator.training"] = own
        for field, schedule in schedules.items():
            if schedule.lora is not None:
                raise ConfigError(
                    f"{field}.lora puts adapters on {config.policy.model}, and model_type {files.model_type!r} takes none: "
                    f"set {field}.lora to null"
                )
    if trained and isinstance(evaluator, RewardHead) and not can_classify(files.model_type):
        raise ConfigError(
            f"evaluator.kind=reward_head needs a sequence classifier, and this transformers has none of model_type "
            f"{files.model_type!r} ({config.policy.model}): set evaluator.kind to generative or linear"
        )
    embedding, layers = config.embedding, files.text_config.get("num_hidden_layers")
    if isinstance(embedding, PolicyEmbedding) and embedding.layers and layers and embedding.layers > layers:
        raise ConfigError(f"embedding.layers must be at most the model's {layers}, got {embedding.layers}")
    prompt, response = config.policy.max_prompt_tokens, config.generation.max_new_tokens
    probe = files.check_template("policy.template") if config.policy.template == "chat" else None
    if probe is None:
        return _Lengths(prompt, response, 0, 1)  # the end token
    return _Lengths(prompt, response, count(probe.around), count(probe.after) if probe.after else 0)


def _check_lengths(
    config: Experiment, context: int, lengths: _Lengths, views: Sequence[str], count: Callable[[str], int]
) -> None:
    """Raise ConfigError if a text may pass the context of the policy: it fails there, or is read wrongly in silence."""
    reads = f"the {context} tokens that {config.policy.model} reads"
    if lengths.whole > context:
        raise ConfigError(
            f"policy.max_prompt_tokens={lengths.prompt}, generation.max_new_tokens={lengths.response} and {lengths.after} "
            f"of the template make {lengths.whole}, and pass {reads}: lower one of the two by {lengths.whole - context}"
        )
    evaluator = config.evaluator
    if config.feedback in ("proxy", "policy") and isinstance(evaluator, Judge):
        question = _question(config, lengths, count)
        if question > context:
            raise ConfigError(
                f"evaluator.kind={evaluator.kind_name()} asks about rubric, prompt and response in up to {question} tokens, "
                f"which pass {reads}: lower policy.max_prompt_tokens or generation.max_new_tokens, or use another evaluator"
            )
    embedding = config.embedding
    if isinstance(embedding, PolicyEmbedding) and views:
        view = max(_in_view(config, view, lengths, count) for view in views)
        if min(view, embedding.max_tokens or view) > context:
            raise ConfigError(
                f"embedding.max_tokens={embedding.max_tokens} reads texts of up to {view} tokens, which pass {reads}: set "
                f"it to {context}, or lower policy.max_prompt_tokens or generation.max_new_tokens"
            )


def _check_demonstrations(
    config: Experiment,
    context: int,
    lengths: _Lengths,
    demonstrations: Sequence[Demonstration],
    count: Callable[[str], int],
) -> None:
    """Raise ConfigError if a demonstration that is trained on passes the context of the policy."""
    longest = sorted(demonstrations, key=lambda one: -len(one.prompt) - len(one.response))[:_LONGEST]
    most = max((count(f"{one.prompt} {one.response}") for one in longest), default=0) + lengths.around + 1
    if min(most, config.policy.sft.max_length) > context:
        raise ConfigError(
            f"policy.sft.max_length={config.policy.sft.max_length} lets in a demonstration of about {most} tokens, and "
            f"{config.policy.model} reads {context}: set it to {context}, and longer ones are left out"
        )


def _question(config: Experiment, lengths: _Lengths, count: Callable[[str], int]) -> int:
    """Return the most tokens of a judging question with its answer."""
    rubric, evaluator = config.labelling.rubric, config.evaluator
    pairs = not evaluator.supports_pointwise
    frame = rubric.render_pair("", "", "") if pairs else rubric.render("", "")
    sampled = isinstance(evaluator, Generative) and evaluator.scoring == "sampled"
    answer = SAMPLED_TOKENS if sampled else count(rubric.answer(0))
    return count(frame) + lengths.around + lengths.prompt + lengths.response * (1 + pairs) + answer


def _in_view(config: Experiment, view: str, lengths: _Lengths, count: Callable[[str], int]) -> int:
    """Return the most tokens of a text that is embedded."""
    if view == "instruction":
        return lengths.prompt
    frame = count(config.labelling.rubric.render("", "")) if view == "evaluation" else 0
    return frame + lengths.prompt + lengths.response


def _reward_model_notes(field: str, oracle: Oracle, lengths: _Lengths) -> list[str]:
    """Return the plan's lines on a reward model. Raises ConfigError if a text may be longer than it reads."""
    if not isinstance(oracle, RewardModel):
        return []
    if (files := files_at_hand(oracle.model)) is None:
        return [f"{'oracle':{_LINE}}{oracle.model} is not here yet: whether it can be used was not checked"]
    if files.context is not None and files.context < min(lengths.whole, oracle.max_tokens):
        raise ConfigError(
            f"{field}.model={oracle.model} reads {files.context} tokens, and policy.max_prompt_tokens={lengths.prompt} with "
            f"generation.max_new_tokens={lengths.response} may make about {lengths.whole}: lower them, or set "
            f"{field}.max_tokens to {files.context}, and longer texts are quarantined"
        )
    if lengths.whole > oracle.max_tokens:
        cut = f"{field} reads {oracle.max_tokens} tokens, and a text may have about {lengths.whole}"
        return [f"{'oracle':{_LINE}}{cut}: longer ones are quarantined"]
    return []
