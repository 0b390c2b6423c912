"""Save a reward head as a standard sequence classifier for other programs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.core.arrays import FloatArray
from models.policies.language_model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RUNNING_TEXT = "{% for message in messages %}{{ message['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
_OURS = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # a name of transformers 5 alone


def save_classifier(model: "PreTrainedModel", head: FloatArray, policy: LanguageModel, folder: Path) -> None:
    """Write the trunk under a linear `head`, shape (d,), and the tokenizer, whose chat template renders as in training."""
    import torch

    model.score = torch.nn.Linear(len(head), 1, bias=False, dtype=model.dtype)
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(head)[None])
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if policy.template == "plain":
        _edit(folder / "tokenizer_config.json", chat_template=_RUNNING_TEXT + policy.tokenizer.eos_token)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    _for_transformers_4(folder)


def _for_transformers_4(folder: Path) -> None:
    """Say under its former names what transformers 5 has renamed: read as the default else, without a word."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    former: dict[str, Any] = {"torch_dtype": config["dtype"]} if "dtype" in config else {}
    if "rope_theta" in rope:
        former["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        former["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    _edit(folder / "config.json", **former)
    told = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    kind = told.get("tokenizer_class", "")
    # no token types: a causal model takes none, and transformers 4 would make them
    read = ["input_ids", "attention_mask"]
    _edit(folder / "tokenizer_config.json", tokenizer_class=_OURS.get(kind, kind), model_input_names=read)


def _edit(path: Path, **fields: object) -> None:
    told = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(told | fields, indent=2, ensure_ascii=False), encoding="utf-8")
