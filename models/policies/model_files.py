"""What a model's files say of it, read without loading it: its architecture, its context, its chat template.

Loading takes seconds and gigabytes, and even the library that loads takes seconds to import; a plan has neither.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.core.errors import ConfigError
from models.policies.resolve import folder_at_hand

if TYPE_CHECKING:
    from jinja2 import Template as Compiled

_QUESTION, _ANSWER = "Which word names the probe?", "Zebrafish is the word."
_LENGTHS = (  # as configurations call the most tokens that a model reads
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx"),
)
_STRETCHED = {"linear", "dynamic", "yarn"}  # kinds of scaling whose factor is not in that length yet
_OFFSET = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text", "mpnet"}
_WRITES = ("ForCausalLM", "LMHeadModel")
_CLASSIFIES = "ForSequenceClassification"


class Probe:
    """A question and its answer as a chat template renders them, and what it writes around the two."""

    def __init__(self, asked: str, whole: str) -> None:
        self.asked, self.whole = asked, whole

    @property
    def around(self) -> str:
        """Return all that is neither question nor answer."""
        return self.whole.replace(_QUESTION, "", 1).replace(_ANSWER, "", 1)

    @property
    def after(self) -> str:
        """Return what follows the answer."""
        return self.whole.partition(_ANSWER)[2]

    @property
    def fault(self) -> str:
        """Return what of the two texts does not come through; "" where both do."""
        if _QUESTION not in self.asked or _QUESTION not in self.whole:
            return "it leaves the prompt out"
        if _ANSWER not in self.whole.partition(_QUESTION)[2]:
            return "it leaves the response out, or puts it before the prompt"
        if not self.whole.startswith(self.asked.partition(_QUESTION)[0] + _QUESTION):
            return "it writes the prompt in another way once a response follows"
        return ""


@dataclass(frozen=True)
class ModelFiles:
    """The configuration and the tokenizer's settings of a model in a folder."""

    reference: str
    folder: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Return what is in config.json; nothing where there is none (a sentence encoder keeps it elsewhere)."""
        return _read(self.folder / "config.json")

    @property
    def text_config(self) -> Mapping[str, Any]:
        """Return the part of the configuration that is about text, of a model that sees pictures too."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def model_type(self) -> str:
        """Return the family of the architecture, as the library calls it."""
        return str(self.config.get("model_type", ""))

    @property
    def context(self) -> int | None:
        """Return the most tokens that the model reads at once; None where its configuration sets no limit."""
        config = self.text_config
        length = next((config[name] for name in _LENGTHS if isinstance(config.get(name), int)), None)
        if length is None or length <= 0:
            return None
        if config.get("model_type") in _OFFSET:  # positions are counted from behind the pad token's number
            length -= int(config.get("pad_token_id") or 1) + 1
        scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) in _STRETCHED:
            before = scaling.get("original_max_position_embeddings") or length
            length = max(length, int(before * (scaling.get("factor") or 1)))
        return int(length)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer's files are here, so that a template that is not among them is not there."""
        return any((self.folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))

    @cached_property
    def chat_template(self) -> str:
        """Return the source of the chat template; "" where there is none."""
        own = self.folder / "chat_template.jinja"
        if own.is_file():
            return own.read_text(encoding="utf-8")
        told = _read(self.folder / "tokenizer_config.json").get("chat_template") or ""
        if isinstance(told, list):  # several by name
            told = next((one.get("template") for one in told if one.get("name") == "default"), "")
        return str(told)

    def probe(self) -> Probe:
        """Return a question and its answer as the chat template renders them. Raises ConfigError where it refuses."""
        asked = [{"role": "user", "content": _QUESTION}]
        tokens = _special_tokens(_read(self.folder / "tokenizer_config.json"))

        def rendered(messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
            given = {"messages": messages, "tools": None, "documents": None} | tokens
            return _compiled(self.chat_template).render(**given, add_generation_prompt=add_generation_prompt)

        try:
            return Probe(
                rendered(asked, add_generation_prompt=True),
                rendered([*asked, {"role": "assistant", "content": _ANSWER}], add_generation_prompt=False),
            )
        except Exception as refused:  # a template is a program, and may fail in any way
            raise ConfigError(f"{type(refused).__name__}: {refused}") from None

    def check_template(self, field: str) -> Probe | None:
        """Raise ConfigError if the chat template cannot render a prompt and a response; `field` chooses the template.

        Returns what it renders; None where the tokenizer is not here.
        """
        if not self.chat_template:
            if self.has_tokenizer:
                raise ConfigError(
                    f"{field}=chat, and the tokenizer of {self.reference!r} has no chat template: set {field} to plain"
                )
            return None
        try:
            probe = self.probe()
            fault = probe.fault
        except ConfigError as refused:
            fault = f"it fails on a prompt and its response ({refused})"
        if fault:
            raise ConfigError(
                f"{field}=chat, and the chat template of {self.reference!r} cannot be used: {fault}. Set {field} to plain, "
                "or mend the template"
            )
        return probe

    def check_writes(self, field: str) -> None:
        """Raise ConfigError if this is no causal language model, or one that the library does not know."""
        remedy = f"set {field} to a causal language model"
        if self.text_config.get("is_encoder_decoder") or self.config.get("is_encoder_decoder"):
            raise ConfigError(
                f"{field}={self.reference} is an encoder-decoder ({self.model_type}), and prompt and response are read as "
                f"one text here: {remedy}"
            )
        known = known_architectures("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
        if known and self.model_type and self.model_type not in known:
            raise ConfigError(
                f"{field}={self.reference} has model_type {self.model_type!r}, which has no causal language-model head in "
                f"this transformers, and a model's own code is not run: {remedy}"
            )
        named = [str(name) for name in self.config.get("architectures") or ()]
        writes = [name for name in named if name.endswith(_WRITES) or name in known.values()]
        tied = self.text_config.get("tie_word_embeddings") and named and named[0].endswith("Model")
        if named and known and not writes and not tied:
            raise ConfigError(
                f"{field}={self.reference} was saved as {named[0]}, which has no language-model head: {remedy}"
            )

    def check_scores(self, field: str) -> None:
        """Raise ConfigError if this is no sequence classifier with one output."""
        remedy = f"set {field} to a reward model: a sequence classifier with one output"
        named = [str(name) for name in self.config.get("architectures") or ()]
        if named and not any(_CLASSIFIES in name for name in named):
            raise ConfigError(
                f"{field}={self.reference} was saved as {named[0]}, which has no sequence-classification head: {remedy}"
            )
        if not can_classify(self.model_type):
            raise ConfigError(
                f"{field}={self.reference} has model_type {self.model_type!r}, which has no sequence-classification head in "
                f"this transformers, and a model's own code is not run: {remedy}"
            )
        # the library writes neither where there are two, its default
        outputs = self.config.get("num_labels") or len(self.config.get("id2label") or "12")
        if outputs != 1:
            raise ConfigError(f"{field}={self.reference} has {outputs} outputs, and one is needed: {remedy}")


def files_at_hand(reference: str) -> ModelFiles | None:
    """Return the files of a model that is on this machine already; None where it would be fetched or converted first."""
    folder = folder_at_hand(reference)
    return None if folder is None or not (folder / "config.json").is_file() else ModelFiles(reference, folder)


def can_classify(model_type: str) -> bool:
    """Whether the library has a sequence classifier of a family; true where it does not say."""
    known = known_architectures("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES")
    return not known or not model_type or model_type in known


@lru_cache(maxsize=2)
def known_architectures(table: str) -> dict[str, str]:
    """Return one of the library's tables, class by family, read as text, for importing it takes seconds; or nothing."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return {}
    file = Path(package.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        written = file.read_text(encoding="utf-8")
        _, _, after = written.partition(f"\n{table} = OrderedDict(")
        told = ast.literal_eval(after.partition("\n)")[0].strip())
        return {str(family): str(name) for family, name in told}
    except (OSError, ValueError, SyntaxError, TypeError):
        return {}


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON ({error}): fetch or save the model again") from None
    return told if isinstance(told, dict) else {}


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the tokenizer's named tokens (`eos_token` …), which a template may write."""
    found = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


@lru_cache(maxsize=8)
def _compiled(source: str) -> "Compiled":
    """Return a chat template as the library compiles it."""
    import time

    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # marks the model's own words; they are rendered as they are
        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: object, indent: int | None = None, **_: object) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = to_json
    made.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    return made.from_string(source)
