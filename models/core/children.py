"""The environment of child processes: this one's, but Python does not import what lies in the working directory."""

import os
from collections.abc import Mapping


def environment(
    changes: Mapping[str, str] | None = None, *, instead: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment for a child process: this one's, or another `instead`, with changes.

    `python -m` and `python -c` import from the working directory first, so that a user's own `models/` or `prefect.py`
    there would run in place of ours, with the oracles' keys: PYTHONSAFEPATH keeps it out, for grandchildren too.
    """
    return {**(os.environ if instead is None else instead), **(changes or {}), "PYTHONSAFEPATH": "1"}
