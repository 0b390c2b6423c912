"""Plugins of other packages: found by the entry points `ninefold.plugins`, or named by NINEFOLD_PLUGINS, and imported once.

Importing registers: a plugin is a subclass of an extension point. NINEFOLD_PLUGINS is the machine's environment and no field
of an experiment, for whoever chooses a run's parameters must not run code.
"""

import importlib
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version

from models.core.errors import ConfigError

API = 1  # of what plugins import: raised when they have to be changed
GROUP, VARIABLE = "ninefold.plugins", "NINEFOLD_PLUGINS"


@cache
def load_plugins() -> tuple[str, ...]:
    """Import the modules of other packages' plugins, and return whose they are; raise ConfigError naming one that fails."""
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    named = [name for name in os.environ.get(VARIABLE, "").replace(",", " ").split() if name]
    found = [_imported(point.value, _distribution(point)) for point in points]
    return tuple(dict.fromkeys([*found, *(_imported(name, f"{VARIABLE}={name}") for name in named)]))


def origin(cls: type) -> str:
    """Return where a class comes from: the distribution of its package, or its module."""
    top = cls.__module__.partition(".")[0]
    distributions = _distributions().get(top, [])
    return f"{distributions[0]} {version(distributions[0])}" if distributions else cls.__module__


@cache  # it reads every installed file's name
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _imported(module: str, whose: str) -> str:
    try:
        loaded = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            f"the plugin module {module} of {whose} cannot be imported ({type(error).__name__}: {error}): mend it, "
            f"uninstall it, or take it out of {VARIABLE}"
        ) from error
    if (needed := getattr(loaded, "NINEFOLD_API", API)) > API:
        raise ConfigError(
            f"the plugin module {module} of {whose} is for plugin API {needed}, and this is {API}: update"
        )
    return whose
