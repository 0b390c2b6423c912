"""How a server wants to be asked: field names, roles and headers differ between servers of the same API."""

from typing import Any, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator

from models.core.errors import ConfigError
from models.core.registry import Frozen

_OURS = {"model", "messages", "stream", "n"}  # a call has one answer, which is read whole

# Which of our fields answers a server that does not take one of its own.
_REMEDIES = {
    "max_tokens": "set endpoint.request.max_tokens_as to max_completion_tokens, or to null",
    "max_completion_tokens": "set endpoint.request.max_tokens_as to max_tokens, or to null",
    "temperature": "set endpoint.temperature to null",
    "seed": "set endpoint.request.seed to false",
    "response_format": "set structured_output to false",
    "json_schema": "set structured_output to false",
    "top_logprobs": "set alternatives to what the server allows, or scoring to stated",
    "logprobs": "set scoring to stated",
    "reasoning_effort": "set endpoint.request.reasoning_effort to null",
    "system": "set endpoint.request.system to user",
    "developer": "set endpoint.request.system to system",
}


class RequestStyle(Frozen):
    """What a request says beside the question, and where. Fields that are null are not sent."""

    # They decide how a request is written and not what is answered.
    execution_fields: ClassVar[frozenset[str]] = frozenset({"max_tokens_as", "seed", "key_header", "query"})

    max_tokens_as: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        "max_tokens",
        description="Field that carries `max_tokens`. The other one is taken where the server asks for it; null sends none.",
    )
    seed: bool = Field(True, description="Whether a seed is sent, where a judgement is asked for again.")
    reasoning_effort: str | None = Field(
        None, description="How long a reasoning model thinks, as the server calls it; not sent by default."
    )
    system: Literal["system", "developer", "user"] = Field(
        "system",
        description="Role of the instructions; `user` puts them before the question, for models without the role.",
    )
    key_header: str = Field(
        "Authorization",
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        description="Header that carries the key: as `Bearer`, or bare in any other one, such as `api-key`.",
    )
    query: dict[str, str] = Field(
        {}, description="Query of the URL, such as `api-version`. It is written into records: put no key here."
    )
    extra: dict[str, JsonValue] = Field(
        {}, description="Further fields of the request's body, by the server's own names."
    )

    @field_validator("extra")
    @classmethod
    def _leaves_ours_alone(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(_OURS & extra.keys()):
            raise ConfigError(f"extra holds {', '.join(taken)}, which Ninefold sets itself: leave it out")
        return extra

    def identity(self) -> dict[str, Any]:
        """Return what a reply depends on."""
        return self.model_dump(mode="json", exclude=set(self.execution_fields))

    def messages(self, asked: list[dict[str, str]]) -> list[dict[str, str]]:
        """Return messages with their instructions where this server takes them."""
        if self.system == "system" or not asked or asked[0]["role"] != "system":
            return asked
        told, *others = asked
        if self.system == "developer" or not others:
            return [{**told, "role": self.system}, *others]
        first, *rest = others
        return [{**first, "content": f"{told['content']}\n\n{first['content']}"}, *rest]


def remedy_for(param: str, words: str) -> str:
    """Return what to set where a server refuses a field, named as `param` or in words; "" if it names none of ours."""
    named = param.partition(".")[0].partition("[")[0]
    if named in _REMEDIES:
        return _REMEDIES[named]
    lowered = words.lower()
    found = [name for name in _REMEDIES if name in lowered]
    return _REMEDIES[max(found, key=len)] if found else ""
