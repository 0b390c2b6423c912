"""A policy on disk, base model and adapters, and the loaded models that are kept in memory."""

import gc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from models.policies.chat_template import Renderer, Template
from models.policies.dtypes import Dtype, attention
from models.policies.language_model import ADAPTER, LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """What a policy is on disk: the folder of its base model (and a digest of it), and what trainings have made of it.

    In order: a LoRA adapter each, or every weight where a training had none.
    """

    source: str
    adapters: tuple[Path, ...] = ()
    dtype: Dtype = "bfloat16"
    template: Template = "chat"
    weights: str = ""

    def load_cached(self) -> LanguageModel:
        """Return the model to read from, as it was loaded before if it was: loading takes seconds.

        Of small models several stay loaded, as many as the cache has room for; of a large one only the last.
        """
        found = CACHE.models.pop(self, None)
        if found is None:
            CACHE.make_room(self._bytes())
            found = self._loaded()
        CACHE.models[self] = found
        return found

    def load_copy(self) -> LanguageModel:
        """Return the model for the caller alone to train: a copy, or where two are too many all that are `shared` go."""
        if 2 * self._bytes() <= CACHE.room:
            kept = CACHE.models.get(self)
            CACHE.make_room(self._bytes())
            return self._loaded() if kept is None else replace(kept, model=deepcopy(kept.model))
        kept = CACHE.models.pop(self, None)
        CACHE.models.clear()
        return kept or self._loaded()

    def renderer(self) -> Renderer:
        """Return the renderer of its tokenizer, without loading its weights."""
        return Renderer(self.load_tokenizer(), self.template)

    def load_on_cpu(self) -> LanguageModel:
        """Return the model on the processor, for a trainer to spread over devices."""
        return self._loaded(on_gpu=False, attend=attention(self.dtype))

    def write_merged(self, folder: Path) -> Path:
        """Write the model with its adapters merged, for an engine of its own, and return where it lies."""
        model = self._loaded(on_gpu=False)
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return folder

    def _bytes(self) -> int:
        """Return what the model takes at most: most files hold two bytes to a weight."""
        on_disk = sum(file.stat().st_size for file in Path(self.source).glob("*.safetensors"))
        return on_disk * (2 if self.dtype == "float32" else 1)

    def _loaded(self, *, on_gpu: bool = True, attend: str | None = None) -> LanguageModel:
        """Load the weights and merge the adapters: safetensors only, no remote code; on a GPU where there is one."""
        import torch
        from transformers import AutoModelForCausalLM

        whole = [number for number, folder in enumerate(self.adapters) if not (folder / ADAPTER).exists()]
        newest = whole[-1] if whole else None  # every weight: nothing before it counts
        model = AutoModelForCausalLM.from_pretrained(
            self.source if newest is None else self.adapters[newest],
            dtype=getattr(torch, self.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=attention(self.dtype) if on_gpu else attend,
        )
        if adapters := self.adapters[0 if newest is None else newest + 1 :]:
            from peft import PeftModel

            for adapter in adapters:
                model = PeftModel.from_pretrained(model, adapter, use_safetensors=True).merge_and_unload()
        # Merging leaves the weights without requires_grad; on a CPU torch 2.13 then repacks every weight at every step
        # of generate (about 4× slower, 4 GB more; measured). Nothing here runs outside inference_mode, so no graph is built.
        model.requires_grad_(True)
        if on_gpu and torch.cuda.is_available():
            model = model.to("cuda")
        return LanguageModel(model.eval(), self.load_tokenizer(), self.template)

    def load_tokenizer(self) -> "PreTrainedTokenizerBase":
        """Return the tokenizer, with a pad token (its end token where it has none)."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


class ModelCache:
    """Loaded models that are shared for reading, at most `room` bytes of them beside each other.

    `models` is in order of use: most recently used last. `releases` are called when all models are to be let go of, for
    what other modules keep loaded.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.models: dict[Checkpoint, LanguageModel] = {}
        self.releases: list[Callable[[], None]] = []

    def make_room(self, size: int) -> None:
        """Drop the least recently used models until `size` bytes fit beside the others."""
        while (
            self.models and size + sum(held.model.get_memory_footprint() for held in self.models.values()) > self.room
        ):
            del self.models[next(iter(self.models))]

    def release(self) -> None:
        """Drop every model, and the GPU's memory that they took."""
        import torch

        self.models.clear()
        for let_go in self.releases:
            let_go()
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


CACHE = ModelCache(room=2 << 30)
