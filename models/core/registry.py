"""Plugin registry: a plugin is a frozen pydantic model with a literal `kind`, in a file of its own."""

import hashlib
import importlib
import json
import pkgutil
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
)
from pydantic_core import CoreSchema, core_schema

from models.core.errors import ConfigError
from models.core.external import load_plugins, origin


class Frozen(BaseModel):
    """A value: immutable, hashable, and closed to fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Fields that change how fast a stage runs but not what it returns: left out of cache keys.
    execution_fields: ClassVar[frozenset[str]] = frozenset()

    def digest(self) -> str:
        """Return a 16-digit hexadecimal digest of every field, stable across processes and machines."""
        return digest_of(self.model_dump(mode="json"))


class Plugin(Frozen):
    """Base of every extension point.

    A concrete plugin declares `kind: Literal["name"] = "name"`. The same object is the YAML entry, the
    Prefect parameter, a part of the cache key, and the implementation.
    """

    # Raised by the author when the plugin computes something else than before: part of every cache key, and of a label's
    # identity where the plugin is an oracle.
    version: ClassVar[int] = 1

    def kind_name(self) -> str:
        """Return the kind, for people."""
        return str(getattr(self, "kind", type(self).__name__))


P = TypeVar("P", bound=Plugin)


def digest_of(value: object) -> str:
    """Return a 16-digit hexadecimal digest of a JSON-like value, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def plugins_of(base: type[P]) -> list[type[P]]:
    """Return the concrete subclasses of an extension point, ordered by kind.

    Every module of the package that defines `base` is imported first, and the plugins of other packages. Raises ConfigError
    if two claim one kind, or if a kind of another package does not say whose it is (`package/name`).
    """
    package = importlib.import_module(base.__module__.rpartition(".")[0])
    for entry in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{entry.name}")
    load_plugins()
    found: dict[str, type[P]] = {}
    unvisited = [base]
    while unvisited:
        cls = unvisited.pop()
        unvisited.extend(cls.__subclasses__())
        kind = cls.model_fields.get("kind")
        if kind is None:
            continue
        if kind.default in found and found[kind.default] is not cls:
            first, second = sorted(f"{one.__qualname__} of {origin(one)}" for one in (found[kind.default], cls))
            raise ConfigError(f"kind {kind.default!r} is claimed by {first} and by {second}: rename one")
        if ("/" in kind.default) == cls.__module__.startswith("models."):
            raise ConfigError(
                f"kind {kind.default!r} is {cls.__qualname__}'s of {origin(cls)}: kinds of other packages are "
                "'package/name', and Ninefold's own have no slash"
            )
        found[kind.default] = cls
    return [found[kind] for kind in sorted(found)]


class OneOf:
    """Annotation that turns a plugin base into the discriminated union of its plugins.

    `acquisition: Annotated[Acquisition, OneOf()]` accepts every strategy in the package of `Acquisition`, and a typo in
    `kind` is answered with the list of the kinds there are. `late` is for a plugin that holds another of its own package,
    which is not whole while it is being imported.
    """

    def __init__(self, *, late: bool = False) -> None:
        self.late = late

    def __get_pydantic_core_schema__(self, source: type[Plugin], handler: GetCoreSchemaHandler) -> CoreSchema:
        if self.late:
            return core_schema.no_info_plain_validator_function(
                lambda value: self._adapter(source).validate_python(value),
                serialization=core_schema.plain_serializer_function_ser_schema(lambda plugin: plugin.model_dump()),
            )
        return handler.generate_schema(self._union(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "object", "description": "any kind"} if self.late else handler(schema)

    def _union(self, base: type[Plugin]) -> Any:  # noqa: ANN401
        kinds = plugins_of(base)
        return kinds[0] if len(kinds) == 1 else Annotated[Union[tuple(kinds)], Field(discriminator="kind")]  # noqa: UP007

    @cache  # noqa: B019 - one OneOf per field, for the life of the process
    def _adapter(self, base: type[Plugin]) -> TypeAdapter[Any]:
        return TypeAdapter(self._union(base))
