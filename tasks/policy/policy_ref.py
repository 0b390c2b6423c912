"""Reference to a policy between stages: base model by digest, adapters as Refs."""

from collections.abc import Sequence
from typing import ClassVar

from models.core.data import Response
from models.core.errors import ConfigError
from models.core.registry import Frozen
from models.policies.chat_template import Renderer, Template
from models.policies.checkpoint import Checkpoint
from models.policies.dtypes import Dtype
from models.policies.language_model import Likelihood
from models.policies.resolve import locate
from tasks.engine.store import Ref, store


class Policy(Frozen):
    """`M_0` has no adapter, `M_1` the SFT adapter, `M_2` the DPO adapter on top."""

    execution_fields: ClassVar[frozenset[str]] = frozenset({"model"})  # `weights` says what it is; this only where

    model: str
    weights: str  # a digest of the base model, wherever it lies
    dtype: Dtype
    template: Template
    adapters: tuple[Ref, ...] = ()

    @property
    def base(self) -> "Policy":
        """Return `M_0`."""
        return self.model_copy(update={"adapters": ()})

    def adapted(self, adapter: Ref) -> "Policy":
        """Return the policy with one more adapter on top."""
        return self.model_copy(update={"adapters": (*self.adapters, adapter)})

    def renderer(self) -> Renderer:
        """Return the renderer of its tokenizer, without loading its weights."""
        return self.checkpoint().renderer()

    def likelihood(self, responses: Sequence[Response], *, max_new_tokens: int, own: bool, what: str) -> Likelihood:
        """Return the log-probability of sampled responses; the end token counts in those shorter than `max_new_tokens`.

        `own`: this policy has sampled them, and what is recorded of the same tokens is taken for it.
        """
        texts, ended = [(r.prompt, r.text) for r in responses], [r.tokens < max_new_tokens for r in responses]
        sampled = responses if own else ()
        return self.checkpoint().load_cached().likelihood(texts, ended=ended, sampled=sampled, what=what)

    def checkpoint(self) -> Checkpoint:
        """Return where the policy lies on this machine; raise ConfigError if the base model is no longer the same."""
        located = locate(self.model)
        if located.digest != self.weights:
            raise ConfigError(
                f"model {self.model!r} has changed since this run began ({self.weights} → {located.digest})"
            )
        folders = tuple(store().folder(adapter) for adapter in self.adapters)
        return Checkpoint(located.source, folders, self.dtype, self.template, located.digest)
